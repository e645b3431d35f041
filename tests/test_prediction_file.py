"""Tests of reading prediction files: every row is checked, and none counts twice."""

import json
import os
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

from mmar_jobs.errors import DataError
from mmar_jobs.prediction_file import read_rows

ROWS: list[dict[str, Any]] = [
    {"id": "q0", "answer_prediction": "Yes"},
    {"id": "q1"},
    {"id": "q2", "answer_prediction": None, "thinking_prediction": "I hear \u2028 it."},
]


def lines_of(*rows: object) -> bytes:
    """Rows as JSON lines."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.mark.parametrize("kind", ["lines", "blank lines", "array", "zip"])
def test_the_forms_of_a_file_give_the_same_rows(tmp_path: Path, kind: str) -> None:
    """JSON lines, with blank ones between them, one array, and a submission zip."""
    path = tmp_path / "predictions"
    data = lines_of(*ROWS)
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("result.jsonl", data)
    else:
        forms = {"lines": data, "blank lines": data.replace(b"\n", b"\r\n\n\n")}
        path.write_bytes(forms.get(kind, json.dumps(ROWS, indent=1).encode()))
    assert {row["id"]: row for row in ROWS} == read_rows(str(path))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "has no predictions"),
        (b"{broken", "line 1: is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"id": "\xff"}', "line 1: is not UTF-8"),
        (lines_of(["a"]), "line 1: is not a prediction"),
        (lines_of({"answer_prediction": "Yes"}), "line 1: is not a prediction: it has no id"),
        (lines_of({"id": "a"}, {"id": 3}), "line 2: is not a prediction: it has no id"),
        (lines_of({"id": "a", "answer_prediction": 3}), "line 1: answer_prediction must be text"),
        (lines_of({"id": "a", "thinking_prediction": []}), "line 1: thinking_prediction must be"),
        (lines_of({"id": "a"}, {"id": "a"}), "line 2: duplicate id 'a': keep one"),
        (b"PK\x03\x04", "not a readable zip file"),
        (b"\x1f\x8b\x08", "is compressed by gzip: unpack it first"),
    ],
)
def test_unreadable_predictions_are_an_error(tmp_path: Path, data: bytes, problem: str) -> None:
    """A score is never made of half a file, and the message names the file and the line."""
    path = tmp_path / "predictions"
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"{path}:? {problem}"):
        read_rows(str(path))


def test_a_pipe_is_a_file_too(tmp_path: Path) -> None:
    """What a shell substitutes for `<(command)` can be read only once."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(lines_of(*ROWS),))
    writer.start()
    found = read_rows(str(pipe))
    writer.join()
    assert ["q0", "q1", "q2"] == list(found)


def test_a_folder_and_nothing_are_no_file(tmp_path: Path) -> None:
    """Both are named."""
    with pytest.raises(DataError, match="is a folder"):
        read_rows(str(tmp_path))
    with pytest.raises(DataError, match="does not exist"):
        read_rows(str(tmp_path / "none.jsonl"))
