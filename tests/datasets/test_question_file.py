"""Tests of a question file as guard and doctor see it: rows, lines, and where clips lie."""

import json
import os
from pathlib import Path

import pytest

from mmar_jobs.datasets.clip_pool import Place
from mmar_jobs.datasets.question_file import hear, read_question_file
from mmar_jobs.errors import DataError, SettingsError
from mmar_jobs.progress import no_bar
from tests.datasets.sound_cases import melody, write_rows, write_wav


def test_rows_keep_the_numbers_of_their_lines(tmp_path: Path) -> None:
    """Empty and bad lines count; a second row of one id is bad."""
    path = write_rows(tmp_path / "q.jsonl", [{"id": key, "audio": "x"} for key in "abca"])
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "", "{", *lines[1:]]))
    file = read_question_file(os.fspath(path))
    assert [(1, "a"), (4, "b"), (5, "c")] == [(number, row.id) for number, row in file.rows]
    assert [3, 6] == [row.line_number for row in file.bad]
    assert ["a", "b", "c"] == [question.id for question in file.questions]


def test_what_is_left_is_as_it_stood(tmp_path: Path) -> None:
    """Bytes and order; line breaks are plain, bad rows are gone."""
    rows = write_rows(tmp_path / "q.jsonl", [{"id": key, "audio": "x"} for key in "abc"])
    lines = rows.read_text().splitlines()
    lines[1] = f"  {lines[1]}  "
    rows.write_bytes("\r\n".join([*lines, "no json"]).encode())
    file = read_question_file(os.fspath(rows))
    assert f"{lines[1]}\n{lines[2]}\n".encode() == file.without({1})
    assert b"" == file.without({1, 2, 3})


def test_an_array_has_no_lines(tmp_path: Path) -> None:
    """Its rows are read and numbered, but none can be left out of the file."""
    row = {"id": "a", "audio": "x", "text": "?", "choices": ["x", "y"], "answer": "x"}
    for indent in (None, 1):
        path = tmp_path / "q.json"
        path.write_text(json.dumps([row, row | {"id": "b"}], indent=indent))
        file = read_question_file(os.fspath(path))
        assert [1, 2] == [number for number, _ in file.rows]
        with pytest.raises(SettingsError, match="is a JSON array"):
            file.require_lines()


@pytest.mark.parametrize(
    ("content", "says"),
    [("", "it is empty"), ("\n\n", "it is empty"), ("{\n", "line 1: is not JSON")],
)
def test_a_file_without_a_question_is_an_error(content: str, says: str, tmp_path: Path) -> None:
    """Which says what its first line is instead."""
    path = tmp_path / "q.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=says):
        read_question_file(os.fspath(path))


def test_clips_lie_beside_the_file_or_below_the_root(tmp_path: Path) -> None:
    """Also where the file is named relative to the working directory, or in a bucket."""
    path = write_rows(tmp_path / "a/q.jsonl", [{"id": "a", "audio": "x"}])
    assert (tmp_path / "a").as_uri() == read_question_file(os.fspath(path)).audio_root
    elsewhere = read_question_file(os.fspath(path), audio_root=os.fspath(tmp_path / "b"))
    assert (tmp_path / "b").as_uri() == elsewhere.audio_root
    bucket = read_question_file(os.fspath(path), audio_root="s3://bucket/clips")
    assert "s3://bucket/clips" == bucket.audio_root


def test_hearing_fills_in_what_ingest_would(tmp_path: Path) -> None:
    """Digest and length by row, prints once a clip, problems by line."""
    write_wav(tmp_path / "one.wav", melody(1, 1.5))
    rows: list[dict[str, object]] = [
        {"id": "a", "audio": "one.wav"},
        {"id": "b", "audio": "no.wav"},
        {"id": "c", "audio": "./one.wav"},
    ]
    file = read_question_file(os.fspath(write_rows(tmp_path / "q.jsonl", rows)))
    heard_prints: list[str] = []
    heard = hear(
        file,
        Place(file.audio_root),
        no_bar,
        lambda digest, _: heard_prints.append(digest),
        jobs=1,
    )
    assert [1.5, 0.0, 1.5] == [question.audio_s for question in heard.questions]
    first, second, third = (question.audio_sha256 for question in heard.questions)
    assert [first] == heard_prints
    assert (first, "") == (third, second)
    assert [2] == list(heard.problems)
    assert all(clip.made is None for clip in heard.examined.values())
