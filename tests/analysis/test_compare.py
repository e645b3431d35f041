"""Tests of compare: paired numbers, their words, and the shape of what comes out."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmar_jobs.analysis.compare import Finding
from mmar_jobs.analysis.text import evidence
from mmar_jobs.cli import run_command
from mmar_jobs.stats import bootstrap_gain, mcnemar
from tests.analysis.cases import compared, rows_of, write_pair
from tests.prediction_files import answers, meta_row, write_rows


def test_a_pair_has_the_numbers_of_its_discordant_items(meta: Path) -> None:
    """Twenty right before, six of these lost, eighteen others won."""
    (pair,) = compared(meta, range(20), range(6, 38)).pairs
    assert (6, 18) == (pair.num_lost, pair.num_won)
    assert (0.5, 0.8) == (pair.baseline_accuracy, pair.accuracy)
    assert mcnemar(6, 18) == pair.p_value
    assert bootstrap_gain(6, 18, 40, seed=0) == pair.gain_ci95
    assert tuple(f"q{i}" for i in range(6)) == pair.lost_ids
    assert tuple(f"q{i}" for i in range(20, 38)) == pair.won_ids
    assert Finding.BETTER is pair.finding


def test_groups_add_up_and_are_adjusted(meta: Path) -> None:
    """Every dimension splits the same questions; Holm never lowers a p-value."""
    (pair,) = compared(meta, range(20), range(6, 38)).pairs
    for rows in pair.dimensions.values():
        assert (40, 6, 18) == tuple(
            sum(getattr(row, name) for row in rows) for name in ("n", "num_lost", "num_won")
        )
        assert all(row.p_value_holm >= row.p_value for row in rows)
    names = {name: [row.name for row in rows] for name, rows in pair.dimensions.items()}
    assert ["Semantic Layer", "Signal Layer"] == names["category"]
    assert (["4 choices"], ["10 to 20 s"]) == (names["num_choices"], names["clip_length"])


@pytest.mark.parametrize(
    ("second", "finding"),
    [(range(20), Finding.NO_DIFFERENCE), (range(2), Finding.WORSE), (range(3, 24), None)],
)
def test_findings(meta: Path, second: range, finding: Finding | None) -> None:
    """The same, clearly worse, and a gain that proves nothing."""
    (pair,) = compared(meta, range(20), second).pairs
    assert (finding or Finding.NO_DIFFERENCE) is pair.finding


def test_questions_of_one_clip_are_drawn_together(tmp_path: Path) -> None:
    """Ten clips of four questions that flip together are ten facts, not forty."""
    meta = write_rows(
        tmp_path / "meta.jsonl",
        [meta_row(i, audio_path=f"clip{i // 4}.wav") for i in range(40)],
    )
    found = compared(meta, range(20), range(8, 36))
    (pair,) = found.pairs
    assert (40, 10) == (found.num_questions, found.num_clips)
    low, high = pair.gain_ci95
    alone_low, alone_high = bootstrap_gain(pair.num_lost, pair.num_won, 40, seed=0)
    assert low < alone_low
    assert high > alone_high


PLACES = st.sets(st.integers(0, 39)).map(sorted)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PLACES, PLACES)
def test_a_pair_turned_round_has_the_opposite_gain(
    meta: Path, first: list[int], second: list[int]
) -> None:
    """Comparing B with A says of A and B what comparing A with B says, with the other sign."""
    (there,) = compared(meta, first, second).pairs
    (back,) = compared(meta, second, first).pairs
    assert (there.num_lost, there.num_won) == (back.num_won, back.num_lost)
    assert there.p_value == back.p_value
    assert there.gain == -back.gain
    assert (there.lost_ids, there.won_ids) == (back.won_ids, back.lost_ids)
    for dimension, rows in there.dimensions.items():
        others = back.dimensions[dimension]
        assert [row.p_value_holm for row in rows] == [row.p_value_holm for row in others]


def test_too_few_clips_have_no_interval(tmp_path: Path) -> None:
    """A bootstrap of two clips, or of none that flipped, would claim to know what it cannot."""
    meta = write_rows(
        tmp_path / "meta.jsonl",
        [
            meta_row(i, category="small" if i < 9 else "still" if i < 24 else "large")
            for i in range(40)
        ],
    )
    (pair,) = compared(meta, range(24), [*range(4, 24), *range(30, 40)]).pairs
    found = {row.name: row for row in pair.dimensions["category"]}
    assert (4, 0, 0) == (found["small"].num_lost, found["still"].num_lost, found["large"].num_lost)
    assert found["small"].gain_ci95 is None
    assert found["still"].gain_ci95 is None
    assert found["large"].gain_ci95 is not None
    same = compared(meta, range(24), range(24)).pairs[0]
    assert same.gain_ci95 is None
    assert "0.0 points; 0 won, 0 lost" in evidence(same)


def test_the_first_lines_answer_the_question(
    meta: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Is it better, by how much, what could have been seen, and where is it worse."""
    assert 0 == run_command("compare", write_pair(meta))
    lines = capsys.readouterr().out.splitlines()
    assert "Yes: child is better than parent, by 30.0 points" == lines[0]
    assert "50.0% → 80.0% of 40 questions" in lines[1]
    assert "18 won, 6 lost, exact McNemar p = 0.023" in lines[1]
    assert re.search(r"40 questions show a difference of \d+\.\d points or more", lines[1])
    assert "It lost in no group." == lines[2].strip()


def test_the_answer_fills_one_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With 60 groups: the answer and those that changed most, 24 lines; all where asked for."""
    rows = [meta_row(i, **{"sub-category": f"kind {i % 50:02}"}) for i in range(400)]
    meta = write_rows(tmp_path / "meta.jsonl", rows)
    before, after = range(200), [i for i in range(400) if i % 50 < 30]
    paths = [
        str(write_rows(tmp_path / name, answers(rows, right)))
        for name, right in (("a.jsonl", before), ("b.jsonl", after))
    ]
    command = [*paths, "--meta", str(meta)]
    assert 0 == run_command("compare", command)
    short = capsys.readouterr().out.splitlines()
    assert len(short) <= 24
    assert "lost most, 6 of 20" in "\n".join(short)
    assert 0 == run_command("compare", [*command, "--all-groups"])
    long = capsys.readouterr().out
    assert all(f"kind {i:02}" in long for i in range(50))
    assert short[0] == long.splitlines()[0]


def test_what_got_worse_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A gain overall does not hide a category that fell."""
    meta = write_rows(tmp_path / "meta.jsonl", [meta_row(i) for i in range(200)])
    rows = rows_of(meta)
    odd, even = range(1, 200, 2), range(0, 200, 2)
    first = write_rows(tmp_path / "a.jsonl", answers(rows, [*odd[:60], *even[:40]]))
    second = write_rows(tmp_path / "b.jsonl", answers(rows, [*odd[:30], *even[:95]]))
    assert 0 == run_command("compare", [str(first), str(second), "--meta", str(meta)])
    told = capsys.readouterr().out
    assert told.startswith("Yes: b is better than a, by 12.5 points")
    assert "Measurably worse in category Semantic Layer (−30.0 points of 100, p < 0.001)" in told


def test_json_has_everything(meta: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One object with files, pairs, groups and the ids that flipped."""
    assert 0 == run_command("compare", [*write_pair(meta), "--json"])
    row = json.loads(capsys.readouterr().out)
    assert ["parent", "child"] == [file["name"] for file in row["files"]]
    (pair,) = row["pairs"]
    assert ("better", 6, 18) == (pair["finding"], len(pair["lost_ids"]), len(pair["won_ids"]))


def test_three_files_give_two_pairs_or_three(
    meta: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All against the first; with --all-pairs all against all."""
    parent, child, *rest = write_pair(meta)
    third = str(write_rows(meta.with_name("third.jsonl"), answers(rows_of(meta), range(9))))
    for flags, expected in (
        ([], [("parent", "child"), ("parent", "third")]),
        (["--all-pairs"], [("parent", "child"), ("parent", "third"), ("child", "third")]),
    ):
        assert 0 == run_command("compare", [parent, child, third, *rest, "--json", *flags])
        pairs = json.loads(capsys.readouterr().out)["pairs"]
        assert expected == [(pair["baseline"], pair["name"]) for pair in pairs]
