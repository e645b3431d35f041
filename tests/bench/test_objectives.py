"""Tests of the bench of objectives: one set of candidates, a fair count, and an honest sentence."""

from dataclasses import replace
from pathlib import Path

import pytest

from mmar_jobs.bench.objectives import (
    OBJECTIVES,
    Learned,
    ObjectivesBench,
    learn_all,
    measure,
    standings,
)
from mmar_jobs.bench.objectives_page import render_objectives, winner
from mmar_jobs.bench.result import Environment
from mmar_jobs.verdict import Decision, Verdict

ENVIRONMENT = Environment("CPU", "", "3.11", {}, "abc", "", "2026-01-01T00:00:00Z")
NUM_HELDOUT = 200


def learned(objective: str, seed: int, right: range) -> Learned:
    """One objective that ends right on these of 200 questions, from 80 right before."""
    verdict = Verdict.model_construct(
        n=NUM_HELDOUT,
        decision=Decision.PROMOTE,
        parent_accuracy=0.4,
        child_accuracy=len(right) / NUM_HELDOUT,
        muted_accuracy=0.3,
        chance=0.35,
    )
    return Learned(
        objective=objective,
        seed=seed,
        verdict=verdict,
        right=frozenset(f"q{index}" for index in right),
        num_drawn_tokens=1000,
        num_trained_tokens=5000,
        train_s=2.5,
    )


def three(grpo: range, both: range) -> list[Learned]:
    """Two seeds of all objectives; plain fine-tuning is right on the first hundred questions."""
    parts = dict(zip(OBJECTIVES, (range(100), grpo, both), strict=True))
    return [learned(name, seed, part) for seed in (1, 2) for name, part in parts.items()]


def test_standings_are_paired_by_seed_and_question() -> None:
    """Won and lost are counted question by question against plain fine-tuning of the same seed."""
    plain, grpo, both = standings(three(range(10, 130), range(100)))
    assert (0, 0, 1.0) == (plain.num_won, plain.num_lost, plain.p_value)
    assert (60, 20) == (grpo.num_won, grpo.num_lost)
    assert grpo.p_value < 1e-4
    assert (0.6, 0.5) == (grpo.accuracy, both.accuracy)
    assert grpo.interval[0] < 0.6 < grpo.interval[1]
    assert [0.3, 0.3] == list(grpo.muted)


@pytest.mark.parametrize(
    ("grpo", "both", "sentence"),
    [
        (range(10, 130), range(101), "grpo is better than rest, by 10.0 points"),
        (range(102), range(101), "No objective is shown to differ from rest"),
        (range(60), range(65), "rest is better than the others, by 17.5 points or more"),
    ],
)
def test_winner_claims_no_more_than_the_test(grpo: range, both: range, sentence: str) -> None:
    """A lead of a question or two is none, and a loss is said."""
    assert sentence == winner(standings(three(grpo, both)))


def test_figures_and_page_show_all_objectives() -> None:
    """Accuracy, muted control and cost of each; the page holds one picture of all."""
    made = three(range(10, 130), range(101))
    bench = ObjectivesBench(Path("unused"), num_seeds=2)
    figures = list(measure(bench, made, ENVIRONMENT))
    assert set(OBJECTIVES) == {figure.case["objective"] for figure in figures}
    assert {2000} == {figure.case["drawn_tokens"] for figure in figures}
    [accuracy] = [
        figure
        for figure in figures
        if figure.name == "objectives/accuracy" and figure.case["objective"] == "grpo"
    ]
    assert (0.6, 0.6) == accuracy.values
    page = render_objectives(standings(made))
    assert page.count("<svg") == 1
    for objective in OBJECTIVES:
        assert f"<td>{objective}</td>" in page


@pytest.mark.slow
def test_objectives_learn_from_the_same_candidates(tmp_path: Path) -> None:
    """A small world from end to end; a second call only reads what the first has made."""
    bench = ObjectivesBench(tmp_path, num_seeds=1, num_train=24, num_heldout=20)
    found = learn_all(bench)
    assert list(OBJECTIVES) == [one.objective for one in found]
    assert 1 == len({one.num_drawn_tokens for one in found})
    assert 1 == len({one.verdict.parent_accuracy for one in found})
    assert 3 == len({one.num_trained_tokens for one in found})
    again = learn_all(bench)
    assert [replace(one, train_s=0) for one in found] == [replace(one, train_s=0) for one in again]
