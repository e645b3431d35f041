"""Tests of the statistics behind the gate: false alarms, power, and what must not be judged."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmar_jobs.bench.difference import ITEMS, MIN_REPEATS, RIGHT, Outcome, Rule, judge
from mmar_jobs.errors import DataError
from tests.bench.figures import accuracy, speed

NUM_TURNS = 10


def outcomes(num: int, *, factor: float, noise: float, seed: int) -> list[Outcome]:
    """Judgements of simulated speeds in turns, on a machine that drifts by 1 % a turn."""
    dice = np.random.default_rng(seed)
    found = []
    for _ in range(num):
        drift = np.exp(np.cumsum(dice.normal(0, 0.01, NUM_TURNS)))
        new, baseline = (
            np.maximum(drift * dice.normal(1, noise, NUM_TURNS), 0.01) for _ in range(2)
        )
        made = judge(speed(new * factor), speed(baseline), Rule(), num_judged=1)
        found.append(made.outcome)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_equal_speeds_are_rarely_called_worse(noise: float) -> None:
    """In at most 5 % of 2,000 comparisons of a program with itself, however noisy."""
    found = outcomes(2_000, factor=1.0, noise=noise, seed=1)
    assert found.count(Outcome.WORSE) <= 100
    assert found.count(Outcome.BETTER) <= 100


def test_a_true_slowdown_is_found() -> None:
    """A tenth slower with 5 % noise is called worse in at least 90 % of 200 comparisons."""
    found = outcomes(200, factor=0.9, noise=0.05, seed=2)
    assert found.count(Outcome.WORSE) >= 180
    assert found.count(Outcome.BETTER) == 0


def test_a_change_below_the_threshold_is_none() -> None:
    """Two per cent, measured without any noise, are real and too little to matter."""
    new, baseline = speed([98.0] * 8), speed([100.0] * 8)
    assert judge(new, baseline, Rule(), num_judged=1).outcome is Outcome.SAME
    assert judge(new, baseline, Rule(min_change=0.01), num_judged=1).outcome is Outcome.WORSE
    strict = Rule(min_change=0.01, min_absolute=5.0)
    assert judge(new, baseline, strict, num_judged=1).outcome is Outcome.SAME


@given(
    st.lists(st.floats(0.5, 2.0), min_size=MIN_REPEATS, max_size=20),
    st.floats(0.5, 2.0),
    st.sampled_from(["higher", "lower"]),
)
def test_swapping_sides_or_direction_swaps_the_outcome(
    values: list[float], factor: float, direction: str
) -> None:
    """Better one way is worse the other way, and less is better where lower is."""
    noisy = [value * (1 + 0.01 * (i % 3)) for i, value in enumerate(values)]
    new = speed([value * factor for value in noisy], direction=direction)
    baseline = speed(values, direction=direction)
    opposite = {
        Outcome.BETTER: Outcome.WORSE, Outcome.WORSE: Outcome.BETTER, Outcome.SAME: Outcome.SAME
    }  # fmt: skip
    # The threshold is on the ratio, whose inverse is not as far from 1: none here.
    rule = Rule(min_change=0.0)
    there = judge(new, baseline, rule, num_judged=1)
    flipped = "lower" if direction == "higher" else "higher"
    sides = [dataclasses.replace(one, direction=flipped) for one in (new, baseline)]
    assert opposite[there.outcome] == judge(*sides, rule, num_judged=1).outcome
    assert there.low <= there.change <= there.high


def test_drift_between_sides_that_were_not_measured_in_turns_is_said() -> None:
    """The judgement carries a note, and repeats need not be equally many."""
    made = judge(
        speed([1.0, 1.1] * 5, turns=""), speed([1.0, 1.1] * 4, turns=""), Rule(), num_judged=1
    )
    assert made.outcome is Outcome.SAME
    assert "drift" in made.note
    made = judge(speed([1.0, 1.1] * 5), speed([1.0, 1.1] * 5, turns="other"), Rule(), num_judged=1)
    assert "drift" in made.note


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (speed([1.0] * 5), "5 repeats cannot be judged"),
        (speed([1.0] * 7), "cut short"),
        (speed([1.0, 0.0] * 4), "has no ratio"),
    ],
)
def test_what_cannot_be_judged_is_refused(new: object, message: str) -> None:
    """Too few repeats, turns that stopped in the middle, a speed of nothing."""
    with pytest.raises(DataError, match=message):
        judge(new, speed([1.0] * 8), Rule(), num_judged=1)  # type: ignore[arg-type]


def test_more_figures_need_more_evidence() -> None:
    """The chance of a false alarm is shared: what one figure shows, twenty do not."""
    new, baseline = speed([0.9, 1.0, 0.95] * 3), speed([1.0, 1.01, 0.99] * 3)
    assert judge(new, baseline, Rule(), num_judged=1).outcome is Outcome.WORSE
    assert judge(new, baseline, Rule(), num_judged=1000).outcome is Outcome.SAME


def test_paired_items_decide_by_mcnemar() -> None:
    """Of 1,000 items 60 lost and 20 won is worse; 30 and 20 is not; 20 and 60 is better."""

    def outcome(num_lost: int, num_won: int) -> Outcome:
        num_same = 1000 - num_lost - num_won
        before = [True] * num_lost + [False] * num_won + [True] * num_same
        after = [False] * num_lost + [True] * num_won + [True] * num_same
        return judge(accuracy(after), accuracy(before), Rule(), num_judged=1).outcome

    assert [Outcome.WORSE, Outcome.SAME, Outcome.BETTER] == [
        outcome(60, 20), outcome(30, 20), outcome(20, 60)
    ]  # fmt: skip


def test_a_loss_that_is_shown_to_be_within_the_margin_is_none() -> None:
    """Of 100,000 items 300 were lost net: sure, and surely less than 2 points."""
    before = [True] * 500 + [False] * 200 + [True] * 99_300
    after = [False] * 500 + [True] * 200 + [True] * 99_300
    made = judge(accuracy(after), accuracy(before), Rule(), num_judged=1)
    assert made.high < 0
    assert made.outcome is Outcome.SAME
    tight = judge(accuracy(after), accuracy(before), Rule(margin=0.001), num_judged=1)
    assert tight.outcome is Outcome.WORSE


def test_totals_alone_need_more_evidence_than_pairs() -> None:
    """The same 30 net losses of 1,000: pairs show them, totals of 700 against 730 do not."""
    before = [True] * 730 + [False] * 270
    after = [False] * 45 + [True] * 685 + [True] * 15 + [False] * 255
    paired = judge(accuracy(after), accuracy(before), Rule(), num_judged=1)
    assert paired.outcome is Outcome.WORSE
    only_totals = []
    for one in (accuracy(after), accuracy(before)):
        detail = {key: value for key, value in one.detail.items() if key not in (RIGHT, ITEMS)}
        only_totals.append(dataclasses.replace(one, detail=detail))
    made = judge(*only_totals, Rule(), num_judged=1)
    assert made.outcome is Outcome.SAME
    assert paired.change == pytest.approx(made.change)
    assert made.low < paired.low < paired.high < made.high


@pytest.mark.parametrize("change", [{"num_right": 3}, {"right": "11"}, {"num_items": 0}])
def test_a_share_that_contradicts_itself_is_refused(change: dict[str, object]) -> None:
    """Totals, items and value must say the same."""
    one = accuracy([True, True, False, False])
    broken = dataclasses.replace(one, detail={**one.detail, **change})
    with pytest.raises(DataError, match=r"ask again|does not fit"):
        judge(broken, one, Rule(), num_judged=1)
