"""Is a figure better or worse than its baseline, or can these repeats not tell; pure.

Not here: which figures belong together (gate.py), and words for people (gate_text.py).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mmar_jobs.bench.result import Measurement
from mmar_jobs.errors import DataError
from mmar_jobs.stats import (
    bootstrap_gain,
    mcnemar_greater,
    minimum_detectable_gain,
    wilson_interval,
)

# Fewer pairs give no bootstrap: of five, one in 16 resamples takes the same pair three times.
MIN_REPEATS: Final = 6
NUM_RESAMPLES: Final = 10_000
_POWER: Final = 0.8
# Details of a figure that is a share of items: how many there are and how many are right, and
# where each is known, a digest of the items' ids and a text with a 1 for each right one.
NUM_ITEMS: Final = "num_items"
NUM_RIGHT: Final = "num_right"
ITEMS: Final = "items_sha256"
RIGHT: Final = "right"
# Figures measured in turns with their baseline carry the same text here.
TURNS: Final = "turns"


class Outcome(StrEnum):
    """What can be said of a figure against its baseline."""

    BETTER = "better"
    SAME = "no detectable change"
    WORSE = "worse"


@dataclass(frozen=True, slots=True)
class Rule:
    """What counts as a change.

    `alpha` is the chance that anything at all is called worse where nothing is (shared among the
    figures of a comparison), and so for better. A speed or size must also differ by the share
    `min_change` and by `min_absolute` of its unit. A share of items is not worse where it is shown
    to have lost less than `margin`.
    """

    alpha: float = 0.05
    min_change: float = 0.03
    min_absolute: float = 0.0
    margin: float = 0.02
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Judgement:
    """One figure against its baseline.

    `change` with its interval [low, high] is new over baseline less 1 for speeds and sizes, and the
    difference of both for a share of items. `detectable` is the change that this many repeats or
    items show with 80 % power; None: nothing would. `method` names the test.
    """

    figure: Measurement
    baseline: Measurement
    outcome: Outcome
    change: float
    low: float
    high: float
    detectable: float | None
    method: str
    note: str = ""


def judge(new: Measurement, baseline: Measurement, rule: Rule, *, num_judged: int) -> Judgement:
    """Compare one figure; DataError where its repeats are too few to say anything.

    `num_judged` figures are compared at once: each gets its share of alpha (Bonferroni).
    """
    alpha = rule.alpha / num_judged
    if NUM_ITEMS in new.detail or NUM_ITEMS in baseline.detail:
        return _judge_share(new, baseline, rule, alpha)
    return _judge_ratio(new, baseline, rule, alpha)


def _judge_ratio(new: Measurement, baseline: Measurement, rule: Rule, alpha: float) -> Judgement:
    """By a studentized bootstrap of the mean log ratio (Efron & Tibshirani 1993, 12.5)."""
    for one in (new, baseline):
        if len(one.values) < MIN_REPEATS:
            raise DataError(
                f"{one.name}: {len(one.values)} repeats cannot be judged: measure it at least "
                f"{MIN_REPEATS} times"
            )
        if min(one.values) <= 0:
            raise DataError(f"{one.name}: a speed or size of {min(one.values):g} has no ratio")
    logs, others = np.log(new.values), np.log(baseline.values)
    turns = new.detail.get(TURNS)
    is_paired = turns is not None and turns == baseline.detail.get(TURNS)
    if is_paired and len(logs) != len(others):
        raise DataError(f"{new.name}: {len(logs)} and {len(others)} turns: the run was cut short")
    samples = [logs - others] if is_paired else [logs, others]
    mean, error, low, high = _interval(samples, alpha, rule.seed)
    change = math.expm1(mean)
    shown = max(high - mean, mean - low) + NormalDist().inv_cdf(_POWER) * error
    is_changed = (low > 0 or high < 0) and abs(change) >= rule.min_change
    is_changed &= abs(new.value - baseline.value) >= rule.min_absolute
    return Judgement(
        figure=new,
        baseline=baseline,
        outcome=_named(is_changed, change > 0, new),
        change=change,
        low=math.expm1(low),
        high=math.expm1(high),
        detectable=max(rule.min_change, math.expm1(shown)),
        method=f"bootstrap of {len(logs)} " + ("turns" if is_paired else "repeats"),
        note="" if is_paired else "not measured in turns: drift of the machine counts as change",
    )


def _named(is_changed: bool, is_more: bool, new: Measurement) -> Outcome:  # noqa: FBT001
    if not is_changed:
        return Outcome.SAME
    return Outcome.BETTER if is_more == (new.direction == "higher") else Outcome.WORSE


def _interval(
    samples: Sequence[NDArray[np.float64]], alpha: float, seed: int
) -> tuple[float, float, float, float]:
    """Mean of the first sample less that of the second, its standard error and its interval.

    Resampled means in units of their own standard error: with six to twenty repeats percentiles of
    the means alone are too narrow by a tenth, and BCa is hardly better.
    """
    mean, error = _moments([sample[None, :] for sample in samples])
    if error[0] == 0:
        return float(mean[0]), 0.0, float(mean[0]), float(mean[0])
    dice = np.random.default_rng(seed)
    drawn = [
        sample[dice.integers(0, len(sample), (NUM_RESAMPLES, len(sample)))] for sample in samples
    ]
    means, errors = _moments(drawn)
    is_spread = errors > 0  # a resample of one value, over and over
    t = (means[is_spread] - mean[0]) / errors[is_spread]
    below, above = np.quantile(t, [alpha / 2, 1 - alpha / 2])
    low, high = mean[0] - above * error[0], mean[0] - below * error[0]
    return float(mean[0]), float(error[0]), float(low), float(high)


def _moments(
    samples: Sequence[NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Difference of the rows' means and its standard error, a row a resample."""
    signs = (1.0, -1.0)[: len(samples)]
    mean = sum(sign * one.mean(axis=1) for sign, one in zip(signs, samples, strict=True))
    variance = sum(one.var(axis=1, ddof=1) / one.shape[1] for one in samples)
    return np.asarray(mean), np.sqrt(np.asarray(variance))


def _judge_share(new: Measurement, baseline: Measurement, rule: Rule, alpha: float) -> Judgement:
    """Paired where both name every item: exact McNemar. Else by Wilson bounds of both totals."""
    if _text(new, ITEMS) and _text(new, ITEMS) == _text(baseline, ITEMS):
        return _judge_pairs(new, baseline, rule, alpha)
    (num_right, num), (num_right_before, num_before) = _totals(new), _totals(baseline)
    share, before = num_right / num, num_right_before / num_before
    # Newcombe (1998), method 10: the interval of a difference out of both Wilson intervals.
    below, above = wilson_interval(num_right, num, confidence=1 - alpha)
    below_before, above_before = wilson_interval(num_right_before, num_before, confidence=1 - alpha)
    change = share - before
    low = change - math.hypot(share - below, above_before - before)
    high = change + math.hypot(above - share, before - below_before)
    # As if each item were answered by chance alone on its own: twice p (1 - p) of them differ.
    detectable = minimum_detectable_gain(
        min(num, num_before), 2 * before * (1 - before), alpha=alpha
    )
    return Judgement(
        figure=new,
        baseline=baseline,
        outcome=_of_share(low, high, rule, new),
        change=change,
        low=low,
        high=high,
        detectable=detectable,
        method=f"Wilson bounds of {num} items",
        note="only totals are known: item by item would show smaller changes",
    )


def _judge_pairs(new: Measurement, baseline: Measurement, rule: Rule, alpha: float) -> Judgement:
    mine, theirs = _text(new, RIGHT), _text(baseline, RIGHT)
    n, _ = len(mine), (_totals(new), _totals(baseline))
    if len(theirs) != n:
        raise DataError(f"{new.name}: {n} and {len(theirs)} items under one digest: ask again")
    pairs = list(zip(mine, theirs, strict=True))
    b, c = pairs.count(("0", "1")), pairs.count(("1", "0"))
    low, high = bootstrap_gain(b, c, n, seed=rule.seed, confidence=1 - alpha)
    p_more, p_fewer = mcnemar_greater(b, c), mcnemar_greater(c, b)
    is_sure = min(p_more, p_fewer) < alpha / 2
    outcome = _of_share(low, high, rule, new) if is_sure else Outcome.SAME
    return Judgement(
        figure=new,
        baseline=baseline,
        outcome=outcome,
        change=(c - b) / n,
        low=low,
        high=high,
        detectable=minimum_detectable_gain(n, (b + c) / n, alpha=alpha),
        method=f"McNemar on {n} items, {b} lost, {c} won",
    )


def _of_share(low: float, high: float, rule: Rule, new: Measurement) -> Outcome:
    """By the interval of the difference; a loss that is shown to be below the margin is none."""
    if new.direction == "lower":
        low, high = -high, -low
    if low > 0:
        return Outcome.BETTER
    return Outcome.WORSE if high < 0 and low <= -rule.margin else Outcome.SAME


def _totals(one: Measurement) -> tuple[int, int]:
    """Right ones and all, checked against each other and against the figure itself."""
    num_right, num, right = one.detail.get(NUM_RIGHT), one.detail.get(NUM_ITEMS), _text(one, RIGHT)
    is_whole = isinstance(num, int) and isinstance(num_right, int) and 0 <= num_right <= num
    if not is_whole or num == 0:
        raise DataError(f"{one.name}: {num_right} right of {num} items is no share: ask again")
    assert isinstance(num, int)
    assert isinstance(num_right, int)
    is_same = not right or (len(right), right.count("1")) == (num, num_right)
    if not is_same or set(right) - set("01") or not math.isclose(one.value, num_right / num):
        raise DataError(f"{one.name}: {num_right} of {num} does not fit its items or its value")
    return num_right, num


def _text(one: Measurement, key: str) -> str:
    found: object = one.detail.get(key, "")
    return found if isinstance(found, str) else ""


def details_of(right: Mapping[str, bool], items_sha256: str) -> dict[str, object]:
    """The details of a share of items from whether each item, by its id in order, is right."""
    return {
        NUM_ITEMS: len(right),
        NUM_RIGHT: sum(right.values()),
        ITEMS: items_sha256,
        RIGHT: "".join("1" if is_right else "0" for is_right in right.values()),
    }
