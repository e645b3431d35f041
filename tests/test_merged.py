"""Tests of score --merged: the benchmark's own scripts read it and say what score says.

The scripts are not here; what they do with a row is written down again from their description.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmar_jobs.analysis.merged import CATEGORIES, MODALITIES, merge_rows, unscriptable
from mmar_jobs.cli import run_command
from mmar_jobs.errors import ExitCode
from tests.fakes import Fails
from tests.prediction_files import CHOICES, answers, meta_row, write_rows

REAL_ROWS = Path(__file__).parents[2] / "shared" / "data" / "mmar-head.jsonl"


def official_script(rows: Iterable[Mapping[str, Any]]) -> tuple[int, int, dict[str, list[int]]]:
    """Right and counted rows, and these by modality, as evaluation.py counts them.

    KeyError, as there, for a modality or category that it does not know.
    """
    by_modality = {name: [0, 0] for name in MODALITIES}
    by_category = {name: [0, 0] for name in CATEGORIES}
    num_right = num = 0
    for row in rows:
        if "answer_prediction" not in row:
            continue
        said, gold = (
            set(re.findall(r"\b\w+\b", row[name].lower()))
            for name in ("answer_prediction", "answer")
        )
        wrong: set[str] = set()
        for choice in row["choices"]:
            words = set(re.findall(r"\b\w+\b", choice.lower()))
            if words != gold:
                wrong |= words - gold
        is_right = bool(said) and gold <= said and said.isdisjoint(wrong)
        for counts in (by_modality[row["modality"]], by_category[row["category"]]):
            counts[0] += is_right
            counts[1] += 1
        num_right += is_right
        num += 1
    return num_right, num, by_modality


@pytest.mark.skipif(not REAL_ROWS.exists(), reason="the real rows are not here")
@pytest.mark.parametrize("num_answered", [100, 60])
def test_real_rows_make_a_round_trip(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], num_answered: int
) -> None:
    """Answered, merged and counted by the official rules they give what score prints."""
    rows = [json.loads(line) for line in REAL_ROWS.read_text().splitlines()]
    predictions = write_rows(tmp_path / "p.jsonl", answers(rows, range(0, 100, 3))[:num_answered])
    merged = tmp_path / "merged.jsonl"
    told = [str(predictions), "--meta", str(REAL_ROWS), "--json", "--merged", str(merged)]
    assert 0 == run_command("score", told)
    output = capsys.readouterr()
    scored = json.loads(output.out)
    assert "merged_not_scriptable" not in output.err
    found = [json.loads(line) for line in merged.read_text().splitlines()]
    num_right, num, by_modality = official_script(found)
    assert num_answered == num == scored["num_with_answer"]
    assert num_right / num == scored["official_script_accuracy"]
    assert num_right / 100 == pytest.approx(scored["official_accuracy"])
    for name, group in scored["by_modality"].items():
        assert by_modality[name][0] == round(group["official_accuracy"] * group["num_items"])
    for row, before in zip(found, rows, strict=True):
        assert before == {key: row[key] for key in before}


@given(st.lists(st.sampled_from([*CHOICES, "a dog or rain", "", None]), min_size=9, max_size=9))
def test_every_row_is_there_in_its_order(said: list[str | None]) -> None:
    """Rows without an answer stay as they were, so that the script skips them."""
    meta = [meta_row(i) for i in range(9)]
    predictions = {
        f"q{i}": {"answer_prediction": text, "thinking_prediction": f"t{i}"}
        for i, text in enumerate(said)
    }
    merged = list(merge_rows(meta, predictions))
    assert [row["id"] for row in meta] == [row["id"] for row in merged]
    for row, before, text in zip(merged, meta, said, strict=True):
        assert row == before | (
            {}
            if text is None
            else {
                "answer_prediction": text,
                "model_prediction": text,
                "thinking_prediction": predictions[row["id"]]["thinking_prediction"],
            }
        )


def test_rows_of_this_project_get_the_benchmarks_names() -> None:
    """audio, text and sub_category become audio_path, question and sub-category."""
    own = {"id": "q", "audio": "a.wav", "text": "What?", "sub_category": "s"}
    (row,) = merge_rows([own], {})
    assert {"id": "q", "audio_path": "a.wav", "question": "What?", "sub-category": "s"} == row


def test_what_the_scripts_cannot_count_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A modality that they do not know ends them; a warning names the first such item."""
    rows = [meta_row(0), meta_row(1, modality="whale song"), meta_row(2)]
    meta = write_rows(tmp_path / "meta.jsonl", rows)
    predictions = write_rows(tmp_path / "p.jsonl", answers(rows, range(3)))
    merged = tmp_path / "merged.jsonl"
    told = [str(predictions), "--meta", str(meta), "--merged", str(merged)]
    assert 0 == run_command("score", told)
    error = capsys.readouterr().err
    assert "merged_not_scriptable" in error
    assert "q1" in error
    found = [json.loads(line) for line in merged.read_text().splitlines()]
    assert ["q1"] == unscriptable(found)
    with pytest.raises(KeyError, match="whale song"):
        official_script(found)


def test_nothing_is_written_where_something_is_wrong(tmp_path: Path, fails: Fails) -> None:
    """Another suffix, and predictions that cannot be read without guessing."""
    rows = [meta_row(i) for i in range(3)]
    meta = str(write_rows(tmp_path / "meta.jsonl", rows))
    twice = str(write_rows(tmp_path / "p.jsonl", [*answers(rows, [0]), *answers(rows, [1])]))
    merged = tmp_path / "merged.jsonl"
    told = (twice, "--meta", meta, "--merged")
    assert "must end in .jsonl" in fails(ExitCode.SETTINGS, "score", *told, str(tmp_path / "m.txt"))
    assert "duplicate id 'q0'" in fails(ExitCode.DATA, "score", *told, str(merged))
    assert not merged.exists()
