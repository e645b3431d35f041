"""Tests of reading files of rows: JSON, JSON lines, CSV and parquet."""

from pathlib import Path

import datasets
import pytest

from mmar_jobs.datasets.rows import read_rows
from mmar_jobs.errors import DataError, SettingsError


def test_parquet_is_read(tmp_path: Path) -> None:
    """By `datasets`, without its cache in the user's folder; a broken file is named."""
    path = tmp_path / "q.parquet"
    datasets.Dataset.from_list(
        [{"id": "1", "audio": "a.wav", "question": "?", "choices": ["x", "y"], "answer": "y"}]
    ).to_parquet(path)
    (row,) = read_rows(path)
    assert ["x", "y"] == row.value["choices"]
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="not a readable parquet file"):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("name", "data", "error"),
    [
        ("a.json", b"[1, 2", DataError),
        ("a.json", b"\xff\xfe[", DataError),
        ("a.csv", b"", DataError),
        ("a.csv", b'a,b\n"x', DataError),
        ("a.txt", b"x", SettingsError),
    ],
)
def test_a_file_that_is_none_is_one_line(
    name: str, data: bytes, error: type[Exception], tmp_path: Path
) -> None:
    """The file as a whole is wrong: its name is in the message."""
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(error, match=name):
        list(read_rows(path))


def test_lines_and_arrays_give_the_same_rows(tmp_path: Path) -> None:
    """A byte order mark and empty lines do not matter; a bad line is named and costs one row."""
    (tmp_path / "a.json").write_text('\ufeff [{"a": 1}, {"a": 2}]')
    (tmp_path / "b.jsonl").write_text('\ufeff{"a": 1}\n\n{"a": 2}\n{bad\n')
    first, second = (list(read_rows(tmp_path / name)) for name in ("a.json", "b.jsonl"))
    assert [{"a": 1}, {"a": 2}] == [row.value for row in first]
    assert [{"a": 1}, {"a": 2}] == [row.value for row in second[:2]]
    assert second[2].problem.startswith("is not JSON")


def test_an_exported_benchmark_item_is_no_row(tmp_path: Path) -> None:
    """Whatever the form of the file: `analyze --export` marks them, and nothing trains on them."""
    (tmp_path / "a.jsonl").write_text('{"benchmark_item": true, "id": "1"}\n{"id": "2"}\n')
    (tmp_path / "b.csv").write_text("benchmark_item,id\ntrue,1\n,2\n")
    for name in ("a.jsonl", "b.csv"):
        marked, plain = read_rows(tmp_path / name)
        assert marked.problem.startswith("is marked benchmark_item")
        assert {} == marked.value
        assert ("", "2") == (plain.problem, plain.value["id"])
