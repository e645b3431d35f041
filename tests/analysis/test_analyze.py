"""Tests of analyze: where it is wrong, what is odd, the export, and who refuses that."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mmar_jobs.analysis.items import read_items
from mmar_jobs.analysis.outcomes import Matcher, read_outcomes
from mmar_jobs.analysis.survey import Survey, survey, worst
from mmar_jobs.analysis.survey_text import where
from mmar_jobs.cli import run_command
from mmar_jobs.errors import ExitCode
from mmar_jobs.lines import open_lines
from mmar_jobs.submission import MAX_THINKING_CHARACTERS
from mmar_jobs.tiny.build import TinyWorld
from tests.analysis.cases import rows_of
from tests.fakes import Fails
from tests.prediction_files import answers, meta_row, write_rows
from tests.report_html import tags_of, words_of


def surveyed(folder: Path, rows: list[dict[str, Any]], predictions: list[Any]) -> Survey:
    """The survey of these predictions of these questions."""
    meta = write_rows(folder / "meta.jsonl", rows)
    lines = open_lines(str(write_rows(folder / "child.jsonl", predictions)))
    items = read_items(open_lines(str(meta)))
    file = read_outcomes(lines, items, matcher=Matcher.STRICT, name="child")
    return survey(items, file, matcher=Matcher.STRICT)[0]


def test_errors_are_counted_in_every_group(tmp_path: Path) -> None:
    """Groups of a dimension have all questions and all errors; excess errors add up to none."""
    rows = [meta_row(i) for i in range(40)]
    found = surveyed(tmp_path, rows, answers(rows, range(0, 40, 4)))
    assert (40, 30, 0.75) == (found.num_items, found.num_wrong, found.error_rate)
    assert [f"q{i}" for i in range(40) if i % 4] == list(found.wrong_ids)
    for groups in found.dimensions.values():
        assert (40, 30) == (sum(row.n for row in groups), sum(row.num_wrong for row in groups))
    semantic, signal = found.dimensions["category"]
    assert (20, 20, 1.0) == (semantic.n, semantic.num_wrong, semantic.error_rate)
    assert (20, 10, 0.5) == (signal.n, signal.num_wrong, signal.error_rate)
    assert (10.0, -10.0) == (semantic.num_excess, signal.num_excess)
    assert semantic.is_worse
    assert not signal.is_worse


def test_the_worst_group_is_named(tmp_path: Path) -> None:
    """One of ten sub-categories fails three times as often: it is first, and measurably so."""
    rows = [meta_row(i, **{"sub-category": f"kind {i % 10}"}) for i in range(400)]
    right = [i for i in range(400) if (i // 10) % 10 >= (6 if i % 10 == 3 else 2)]
    found = surveyed(tmp_path, rows, answers(rows, right))
    first = worst(found, 3)[0]
    assert ("sub_category", "kind 3", 24, 40) == (
        first.dimension, first.name, first.num_wrong, first.n,
    )  # fmt: skip
    assert where(found).startswith(
        "Measurably worst: sub-category kind 3 (60% of 40 wrong, 16 more"
    )


def test_a_few_others_prove_nothing(tmp_path: Path) -> None:
    """34 of 86 wrong beside 4 of 14: the share elsewhere is uncertain, so it is no finding."""
    rows = [meta_row(i, category="large" if i < 86 else "small") for i in range(100)]
    right = [*range(52), *range(86, 96)]
    found = surveyed(tmp_path, rows, answers(rows, right))
    assert not any(row.is_worse for row in found.dimensions["category"])
    assert where(found).startswith("No group is measurably worse")


def test_a_group_of_all_is_compared_with_nothing(tmp_path: Path) -> None:
    """Where all questions have one modality there are no others to be worse than."""
    rows = [meta_row(i) for i in range(20)]
    (alone,) = surveyed(tmp_path, rows, answers(rows, [])).dimensions["modality"]
    assert (20, 0.0, 1.0) == (alone.num_wrong, alone.num_excess, alone.p_value_holm)


def test_signs_are_counted_with_what_they_cost(tmp_path: Path) -> None:
    """How many have a sign, and how often these and the others are right."""
    rows = [meta_row(i) for i in range(40)]
    predictions = answers(rows, range(30))
    for i in (0, 1, 38, 39):
        predictions[i]["thinking_prediction"] = ""
    predictions[39]["answer_prediction"] = "B"
    found = surveyed(tmp_path, rows, predictions)
    assert 1 == found.num_invalid
    signs = {sign.sign.value: sign for sign in found.signs_seen}
    assert {"no_thinking", "letter"} == signs.keys()
    assert (4, 0.5, 28 / 36) == (
        signs["no_thinking"].num,
        signs["no_thinking"].accuracy_with,
        signs["no_thinking"].accuracy_without,
    )
    assert ("q0", "q1", "q38", "q39") == signs["no_thinking"].ids


def test_one_runaway_does_not_flatten_the_lengths(tmp_path: Path) -> None:
    """A thinking of a million characters is counted in the last bar; all others keep theirs."""
    rows = [meta_row(i) for i in range(40)]
    predictions = answers(rows, range(30))
    predictions[39]["thinking_prediction"] = "x" * 1_000_000
    lengths = surveyed(tmp_path, rows, predictions).lengths
    assert (1_000_000, 40) == (lengths.longest, sum(map(sum, lengths.bins)))
    assert (0, 1) == lengths.bins[-1]
    assert lengths.edges[-1] < 2.1 * MAX_THINKING_CHARACTERS
    assert lengths.is_cut
    whole = surveyed(tmp_path, rows, answers(rows, range(30))).lengths
    assert not whole.is_cut
    assert len(f"I hear number {39}.") == whole.longest


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """Arguments of an analysis of a file that is right on 25 of 40."""
    rows = [meta_row(i) for i in range(40)]
    meta = write_rows(tmp_path / "meta.jsonl", rows)
    child = write_rows(tmp_path / "child.jsonl", answers(rows, range(25)))
    return [str(child), "--meta", str(meta)]


def test_the_table_fills_one_screen(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """First what is wrong and where, then as many worst groups as asked for; all where wanted."""
    assert 0 == run_command("analyze", [*command, "--worst", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert "child: 15 of 40 answers are wrong" == lines[0]
    assert "37.5% (95 %: " in lines[1]
    assert len(lines) <= 24
    start = next(i for i, line in enumerate(lines) if line.startswith("most errors beyond"))
    assert "" == lines[start + 3]
    assert "nothing odd: no sign was seen" in lines
    assert 0 == run_command("analyze", [*command, "--all-groups"])
    told = capsys.readouterr().out
    assert re.search(r"Semantic Layer +\d+ of +20 +\d+\.\d% █", told)


def test_json_has_everything(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Groups, signs with their ids, lengths and scripts."""
    assert 0 == run_command("analyze", [*command, "--json"])
    row = json.loads(capsys.readouterr().out)
    assert (40, 15, 15) == (row["num_items"], row["num_wrong"], len(row["wrong_ids"]))
    assert {"modality", "category", "sub_category", "num_choices", "clip_length"} == set(
        row["dimensions"]
    )
    assert 10 == len(row["signs"])
    assert {"Latin": 40} == row["scripts"]


def test_the_page_shows_failed_questions_with_signs_first(tmp_path: Path) -> None:
    """Hostile text stays text; clips that are missing are said; equal files give equal pages."""
    rows = [meta_row(i) for i in range(40)]
    predictions = answers(rows, range(30))
    predictions[39]["answer_prediction"] = "</p><script>alert(1)</script>"
    meta = write_rows(tmp_path / "meta.jsonl", rows)
    child = str(write_rows(tmp_path / "child.jsonl", predictions))
    page = tmp_path / "page.html"
    told = [child, "--meta", str(meta), "--html", str(page), "--max-items", "4"]
    assert 0 == run_command("analyze", told)
    html = page.read_text()
    tags = tags_of(html)
    assert "script" not in {tag for tag, _ in tags}
    words = words_of(html)
    assert "10 of 40 answers are wrong" in words
    assert "<script>alert(1)</script>" in words
    assert "The clip cannot be played" in words
    ids = re.findall(r"<code>(q\d+)</code>", html)
    assert (4, "q39") == (len(ids), ids[0])
    assert 0 == run_command("analyze", told)
    assert html == page.read_text()


def test_failed_items_are_exported_whole(command: list[str], tmp_path: Path) -> None:
    """Every wrong prediction with its question, marked, with both texts and its signs."""
    path = tmp_path / "sub" / "failed.jsonl"
    assert 0 == run_command("analyze", [*command, "--export", str(path)])
    rows = rows_of(path)
    assert [f"q{i}" for i in range(25, 40)] == [row["id"] for row in rows]
    assert all(row["benchmark_item"] is True for row in rows)
    assert ("What is number 25?", "a cat", "a dog", "I hear number 25.", []) == tuple(
        rows[0][name]
        for name in ("text", "answer", "answer_prediction", "thinking_prediction", "signs")
    )


def test_nothing_trains_on_the_export(world: TinyWorld, tmp_path: Path, fails: Fails) -> None:
    """Refused by ingest, data build and prompts alone; among others these rows are left out."""
    rows = rows_of(world.benchmark)
    child = write_rows(tmp_path / "child.jsonl", answers(rows, []))
    path = world.benchmark.parent / "failed.jsonl"
    told = [str(child), "--meta", str(world.benchmark), "--export", str(path)]
    try:
        assert 0 == run_command("analyze", told)
        mark = "is marked benchmark_item: an exported item of the benchmark"
        ingest = ["--store", str(tmp_path / "store"), "--run-id", "r"]
        ingest += ["--benchmark", str(world.benchmark), "--heldout", str(world.heldout)]
        assert mark in fails(ExitCode.DATA, "ingest", *ingest, "--questions", str(path))
        built = ["build", f"--source=table={path}", str(tmp_path / "built"), "--jobs", "1"]
        assert mark in fails(ExitCode.DATA, "data", *built)
        asked = ["compare", "--store", str(tmp_path / "lab"), "--model", "mmar_jobs/tiny/weights"]
        asked += ["--questions", str(path), "--benchmark", str(world.benchmark)]
        assert mark in fails(ExitCode.DATA, "prompts", *asked)
        lines = world.train.read_text() + path.read_text()
        path.write_text(lines)
        assert 0 == run_command("ingest", [*ingest, "--questions", str(path)])
    finally:
        path.unlink()
    from mmar_jobs.artifact import require_artifact
    from mmar_jobs.layout import questions_key
    from mmar_jobs.store import open_store

    made = require_artifact(open_store(str(tmp_path / "store")), questions_key("r"), stage="ingest")
    assert len(rows) == made.manifest.counts["num_rejects"]
    assert 12 == made.manifest.counts["num_train"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--worst", "-1"], "--worst: '-1' is no whole number of 0 or more"),
        (["--max-items", "many"], "--max-items: 'many' is no whole number"),
        (["--matcher", "x"], "--matcher"),
        (["--html", "/dev/null/page.html"], "cannot write /dev/null/page.html"),
    ],
)
def test_wrong_use_is_one_line(
    command: list[str], fails: Fails, flags: list[str], said: str
) -> None:
    """Exit 2, with what to give instead."""
    assert said in fails(ExitCode.SETTINGS, "analyze", *command, *flags)
