"""Tests of reading META and predictions: grades, groups, and hostile files."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmar_jobs.analysis.items import clip_length_s, length_name
from mmar_jobs.analysis.outcomes import Matcher, judge_answer
from mmar_jobs.cli import run_command
from mmar_jobs.errors import ExitCode
from mmar_jobs.grade import parse_answer
from mmar_jobs.score import official_correct
from tests.analysis.cases import rows_of, write_pair
from tests.fakes import Fails
from tests.prediction_files import answers, write_rows


@given(st.data())
def test_the_fast_grade_is_the_grade(data: st.DataObject) -> None:
    """The short cut for verbatim answers says what the matchers say, for every text."""
    words = st.text("ab .A", min_size=1, max_size=5).filter(lambda text: text.strip())
    choices = data.draw(
        st.lists(words, min_size=2, max_size=4, unique_by=lambda c: " ".join(c.split()).casefold())
    )
    answer = data.draw(st.integers(0, len(choices) - 1))
    text = data.draw(st.one_of(st.sampled_from(choices), words, st.just("")))
    named = parse_answer(text, choices)
    expected = {
        Matcher.STRICT: named == choices[answer],
        Matcher.OFFICIAL: official_correct(text, choices[answer], choices),
    }
    for matcher, is_right in expected.items():
        assert (is_right, named is not None) == judge_answer(text, tuple(choices), answer, matcher)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"timestamp": "00:01:32,00:02:02"}, 30.0),
        ({"timestamp": "1:51,2:01;3:14,3:24"}, 20.0),
        ({"audio_s": 2.5, "timestamp": "0:00,0:30"}, 2.5),
        ({"duration": 7}, 7.0),
        ({"timestamp": "soon"}, None),
        ({"timestamp": ""}, None),
        ({"timestamp": None, "duration": "9"}, None),
        ({}, None),
    ],
)
def test_clip_lengths(row: dict[str, Any], expected: float | None) -> None:
    """From what a row says, in all the ways in which rows say it."""
    assert expected == clip_length_s(row)


def test_length_groups_have_lower_ends() -> None:
    """A clip of exactly 5 s is in the group that begins at 5 s."""
    assert ["unknown", "under 5 s", "5 to 10 s", "20 to 30 s", "30 s and more"] == [
        length_name(length_s) for length_s in (None, 4.9, 5.0, 29.9, 30.0)
    ]


def test_a_row_without_answer_is_wrong(meta: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing said is nothing right, and is counted as naming no choice."""
    assert 0 == run_command("compare", [*write_pair(meta, answer_prediction=None), "--json"])
    child = json.loads(capsys.readouterr().out)["files"][1]
    assert (0, 0) == (child["num_right"], child["num_named"])


def test_the_official_matcher_can_be_asked_for(
    meta: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It accepts a sentence around the answer, the strict one does not."""
    rows = rows_of(meta)
    parent, _, *rest = write_pair(meta)
    said = [
        {"id": row["id"], "answer_prediction": f"I would say {row['answer']} here"} for row in rows
    ]
    chatty = str(write_rows(meta.with_name("chatty.jsonl"), said))
    for matcher, expected in (("strict", 0), ("official", 40)):
        command = [parent, chatty, *rest, "--json", "--matcher", matcher]
        assert 0 == run_command("compare", command)
        assert expected == json.loads(capsys.readouterr().out)["files"][1]["num_right"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[:-3], "no prediction of 3 of 40 questions: 'q37', 'q38', 'q39'"),
        (lambda rows: [*rows, rows[4]], "line 41: duplicate id 'q4'"),
        (lambda rows: [*rows, {**rows[0], "id": "stranger"}], "1 unknown ids: 'stranger'"),
        (lambda rows: [{**row, "id": f"x{i}"} for i, row in enumerate(rows)], "another benchmark"),
        (lambda rows: [], "has no predictions"),
        (lambda rows: [{"answer_prediction": "x"}], "line 1: is not a prediction: it has no id"),
        (lambda rows: [{**rows[0], "answer_prediction": 3}], "answer_prediction must be text"),
        (lambda rows: [{**rows[0], "thinking_prediction": []}], "thinking_prediction must be text"),
    ],
)
def test_files_that_do_not_fit_are_refused_by_name(
    meta: Path, fails: Fails, change: Any, said: str
) -> None:
    """Missing, duplicate, unknown and foreign ids; the message names file and ids."""
    command = write_pair(meta)
    write_rows(Path(command[1]), change(answers(rows_of(meta), range(40))))
    line = fails(ExitCode.DATA, "compare", *command)
    assert said in line
    assert "child.jsonl" in line


@pytest.mark.parametrize("content", [b"\xff\xfe\n", b"{half\n", b"\x1f\x8b\x08\x00", b"PK\x03\x04"])
def test_a_file_that_is_none_is_refused(meta: Path, fails: Fails, content: bytes) -> None:
    """Bytes that are no text, no JSON, or a broken archive."""
    command = write_pair(meta)
    Path(command[1]).write_bytes(content)
    assert "child.jsonl" in fails(ExitCode.DATA, "compare", *command)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answer": None}, "question q3 has no answer"),
        ({"answer": "snow"}, "line 4: its answer 'snow' is not among its choices"),
        ({"id": "q2"}, "line 4: duplicate id 'q2'"),
        ({"choices": ["a dog"]}, "line 4: needs 2 to 26 choices"),
        ({"benchmark_item": True}, "line 4: is marked benchmark_item"),
    ],
)
def test_a_broken_meta_is_refused(
    meta: Path, fails: Fails, change: dict[str, Any], said: str
) -> None:
    """A comparison over the rows that can be read would be of another benchmark."""
    command = write_pair(meta)
    rows = rows_of(meta)
    rows[3] |= change
    write_rows(meta, rows)
    assert said in fails(ExitCode.DATA, "compare", *command)


def test_wrong_use_is_one_line(meta: Path, fails: Fails) -> None:
    """One file, the same file twice, no file."""
    parent, child, *rest = write_pair(meta)
    assert "cannot be compared" in fails(ExitCode.SETTINGS, "compare", parent, *rest)
    assert "given twice" in fails(ExitCode.SETTINGS, "compare", parent, parent, *rest)
    assert "nowhere.jsonl" in fails(ExitCode.DATA, "compare", parent, "nowhere.jsonl", *rest)
    assert "--matcher" in fails(
        ExitCode.SETTINGS, "compare", parent, child, *rest, "--matcher", "x"
    )


def test_meta_may_be_an_array_and_rows_of_this_project(
    meta: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The three forms of a question file give the same comparison."""
    told = []
    command = write_pair(meta)
    rows = rows_of(meta)
    own = [
        {
            "id": row["id"], "audio": row["audio_path"], "text": row["question"],
            "choices": row["choices"], "answer": row["answer"], "modality": row["modality"],
            "category": row["category"], "sub_category": row["sub-category"], "audio_s": 12.0,
        }
        for row in rows
    ]  # fmt: skip
    for text in (meta.read_text(), json.dumps(rows), "".join(f"{json.dumps(r)}\n" for r in own)):
        meta.write_text(text)
        assert 0 == run_command("compare", command)
        told.append(capsys.readouterr().out)
    assert told[0] == told[1] == told[2]
