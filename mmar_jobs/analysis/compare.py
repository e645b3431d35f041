"""Is one prediction file better than another, where is it worse, and what could have been seen.

Not here: reading and grading (items.py, outcomes.py), what it looks like (text.py, page.py). Pure.

Shapes: Q questions.
"""

from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mmar_jobs.analysis.items import Groups, Items
from mmar_jobs.analysis.outcomes import Matcher, Outcomes
from mmar_jobs.records import Record
from mmar_jobs.stats import (
    bootstrap_gain,
    bootstrap_gain_by_cluster,
    holm,
    mcnemar,
    minimum_detectable_gain,
    wilson_interval,
)

ALPHA: Final = 0.05
SEED: Final = 0
_MIN_CLIPS: Final = 10  # a bootstrap of fewer is far too narrow; of one it is a point


class Finding(StrEnum):
    """What a pair of files shows at 5 %."""

    BETTER = "better"
    WORSE = "worse"
    NO_DIFFERENCE = "no measurable difference"


class Change(Record):
    """Two files on the same n questions; accuracies and gain are fractions.

    `num_lost` questions are right only in the baseline, `num_won` only in the other file;
    `p_value` is exact McNemar, two-sided; the interval of the gain is a paired bootstrap, None
    where it would only repeat what it has seen: of fewer than 10 clips, or where nothing flipped.
    """

    n: int
    baseline_accuracy: float
    accuracy: float
    gain: float
    gain_ci95: tuple[float, float] | None
    num_lost: int
    num_won: int
    p_value: float


class GroupChange(Change):
    """The change within one group; `p_value_holm` is adjusted for the groups of its dimension."""

    name: str
    p_value_holm: float

    @property
    def finding(self) -> Finding:
        """What it shows after the adjustment."""
        return _finding(self.gain, self.p_value_holm)


class Pair(Change):
    """One file against its baseline; `detectable_gain` has 80 % power at this n, None for none."""

    baseline: str
    name: str
    finding: Finding
    detectable_gain: float | None
    dimensions: dict[str, tuple[GroupChange, ...]]
    lost_ids: tuple[str, ...]
    won_ids: tuple[str, ...]


class FileAccuracy(Record):
    """One prediction file by itself; `num_named` answers name exactly one choice."""

    name: str
    num_right: int
    num_named: int
    accuracy: float
    accuracy_ci95: tuple[float, float]


class Comparison(Record):
    """All files over the same questions. Where clips are shared, intervals draw whole clips."""

    num_questions: int
    num_clips: int
    matcher: Matcher
    files: tuple[FileAccuracy, ...]
    pairs: tuple[Pair, ...]


def compare(
    items: Items, files: Sequence[Outcomes], *, matcher: Matcher, all_pairs: bool = False
) -> Comparison:
    """Compare every file with the first one, or with every file before it."""
    num = len(items.ids)
    baselines = range(len(files) - 1) if all_pairs else range(1)
    return Comparison(
        num_questions=num,
        num_clips=len(np.unique(items.clip_Q)),
        matcher=matcher,
        files=tuple(_alone(file) for file in files),
        pairs=tuple(
            compare_pair(items, files[i], other) for i in baselines for other in files[i + 1 :]
        ),
    )


def compare_pair(items: Items, baseline: Outcomes, other: Outcomes) -> Pair:
    """One file against its baseline, over all questions and within the groups of each dimension."""
    before_Q, after_Q = baseline.right_Q, other.right_Q
    everything = Groups(("all",), np.zeros(len(before_Q), dtype=np.int32))
    (total,) = _changes(everything, before_Q, after_Q, items.clip_Q)
    lost, won = np.flatnonzero(before_Q & ~after_Q), np.flatnonzero(after_Q & ~before_Q)
    return Pair(
        **total.model_dump(),
        baseline=baseline.name,
        name=other.name,
        finding=_finding(total.gain, total.p_value),
        detectable_gain=minimum_detectable_gain(total.n, (len(lost) + len(won)) / total.n),
        dimensions={
            dimension: _by_group(groups, before_Q, after_Q, items.clip_Q)
            for dimension, groups in items.groups.items()
        },
        lost_ids=tuple(items.ids[i] for i in lost),
        won_ids=tuple(items.ids[i] for i in won),
    )


def worst_first(pair: Pair) -> list[tuple[str, GroupChange]]:
    """Groups that lost, with their dimension: measurably worse ones first, then by net loss."""
    return _ranked(pair, -1)


def best_first(pair: Pair) -> list[tuple[str, GroupChange]]:
    """Groups that won, likewise."""
    return _ranked(pair, 1)


def _ranked(pair: Pair, sign: int) -> list[tuple[str, GroupChange]]:
    found = [
        (dimension, row)
        for dimension, rows in pair.dimensions.items()
        for row in rows
        if sign * row.gain > 0 and row.n < pair.n  # a group of all says what the total says
    ]
    return sorted(
        found,
        key=lambda item: (
            item[1].finding is Finding.NO_DIFFERENCE,
            -abs(item[1].num_won - item[1].num_lost),
        ),
    )


def cross(
    items: Items, dimensions: tuple[str, str], baseline: Outcomes, other: Outcomes
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Gain in questions and number of questions, (rows, columns), of two dimensions crossed."""
    rows, columns = (items.groups[name] for name in dimensions)
    shape = (len(rows.names), len(columns.names))
    cell_Q = rows.codes_Q * shape[1] + columns.codes_Q
    gain_Q = other.right_Q.astype(np.int64) - baseline.right_Q
    size = shape[0] * shape[1]
    gains = np.bincount(cell_Q, weights=gain_Q, minlength=size).round().astype(np.int64)
    return gains.reshape(shape), np.bincount(cell_Q, minlength=size).reshape(shape)


def _alone(file: Outcomes) -> FileAccuracy:
    num_right, num = int(file.right_Q.sum()), len(file.right_Q)
    return FileAccuracy(
        name=file.name,
        num_right=num_right,
        num_named=int(file.named_Q.sum()),
        accuracy=num_right / num,
        accuracy_ci95=wilson_interval(num_right, num),
    )


def _finding(gain: float, p_value: float) -> Finding:
    if p_value >= ALPHA:
        return Finding.NO_DIFFERENCE
    return Finding.BETTER if gain > 0 else Finding.WORSE


def _by_group(
    groups: Groups,
    before_Q: NDArray[np.bool_],
    after_Q: NDArray[np.bool_],
    clip_Q: NDArray[np.int32],
) -> tuple[GroupChange, ...]:
    found = _changes(groups, before_Q, after_Q, clip_Q)
    adjusted = holm([change.p_value for change in found])
    return tuple(
        GroupChange(**change.model_dump(), name=name, p_value_holm=p_value)
        for name, change, p_value in zip(groups.names, found, adjusted, strict=True)
    )


def _changes(
    groups: Groups,
    before_Q: NDArray[np.bool_],
    after_Q: NDArray[np.bool_],
    clip_Q: NDArray[np.int32],
) -> list[Change]:
    """The change within every group of one dimension."""
    size = len(groups.names)
    gain_Q = after_Q.astype(np.int64) - before_Q
    ns, befores, afters, losts, wons = (
        np.bincount(groups.codes_Q[chosen], minlength=size)
        for chosen in (slice(None), before_Q, after_Q, gain_Q < 0, gain_Q > 0)
    )
    found = []
    for i in range(size):
        n, lost, won = int(ns[i]), int(losts[i]), int(wons[i])
        inside = groups.codes_Q == i
        found.append(
            Change(
                n=n,
                baseline_accuracy=int(befores[i]) / n,
                accuracy=int(afters[i]) / n,
                gain=(won - lost) / n,
                gain_ci95=_interval(clip_Q[inside], gain_Q[inside], lost, won),
                num_lost=lost,
                num_won=won,
                p_value=mcnemar(lost, won),
            )
        )
    return found


def _interval(
    clip_Q: NDArray[np.int32], gain_Q: NDArray[np.int64], lost: int, won: int
) -> tuple[float, float] | None:
    clips, place_Q = np.unique(clip_Q, return_inverse=True)
    if len(clips) < _MIN_CLIPS or not lost + won:
        return None
    if len(clips) == len(clip_Q):
        return _bootstrap(lost, won, len(clip_Q))
    gains = np.bincount(place_Q, weights=gain_Q).round().astype(np.int64)
    return bootstrap_gain_by_cluster(gains.tolist(), np.bincount(place_Q).tolist(), seed=SEED)


@lru_cache(maxsize=4096)
def _bootstrap(lost: int, won: int, n: int) -> tuple[float, float]:
    # Among thousands of small groups most counts come again.
    return bootstrap_gain(lost, won, n, seed=SEED)
