"""Figures over time, and the commits at which they changed.

Not here: whether one change is better (difference.py), the page (history_page.py).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import ruptures
from numpy.typing import NDArray

from mmar_jobs.bench.result import Measurement

# Fewer figures on one side of a change are an outlier, not a level.
MIN_LENGTH: Final = 3
# A change of level must explain this many times log(n) of the noise's variance. By simulation 3 %
# of series of 30 without a change show one, of 100 none of 300; a fall by a tenth in noise of 5 %
# is placed within two commits in 88 and 96 % of them.
_PENALTY: Final = 4.0
_MIN_CHANGE: Final = 0.03
# Of normal noise the median absolute difference of neighbours over its standard deviation.
_MAD_OF_DIFFERENCES: Final = 0.6745 * math.sqrt(2)


@dataclass(frozen=True, slots=True)
class ChangePoint:
    """The first figure of a new level: its place, and the new level over the old less 1."""

    index: int
    change: float


@dataclass(frozen=True, slots=True)
class Series:
    """One figure on one kind of hardware, oldest first, with its changes of level."""

    figures: tuple[Measurement, ...]
    changes: tuple[ChangePoint, ...]

    @property
    def last(self) -> Measurement:
        """The newest figure."""
        return self.figures[-1]

    def is_good(self, point: ChangePoint) -> bool | None:
        """Whether a change was for the better; None where the figure has no better."""
        if self.last.direction == "none":
            return None
        return (point.change > 0) == (self.last.direction == "higher")


def make_series(figures: Iterable[Measurement]) -> list[Series]:
    """Figures by name, case and hardware, each in order of time; of equal ones the last counts."""
    groups: dict[tuple[str, ...], dict[tuple[str, str], Measurement]] = {}
    for one in figures:
        environment = one.environment
        key = (*one.key, environment.device, environment.driver)
        groups.setdefault(key, {})[environment.measured_at, environment.commit] = one
    made = []
    for _, group in sorted(groups.items()):
        ordered = tuple(group[moment] for moment in sorted(group))
        made.append(Series(ordered, find_changes([one.value for one in ordered])))
    return made


def find_changes(values: Sequence[float]) -> tuple[ChangePoint, ...]:
    """Changes of level by PELT on the logarithms (Killick et al. 2012), noise of any size.

    Figures of 0 or less have no ratio, and fewer than six no two levels: none is found.
    """
    if len(values) < 2 * MIN_LENGTH or min(values) <= 0:
        return ()
    logs: NDArray[np.float64] = np.log(np.asarray(values, dtype=np.float64))
    noise = float(np.median(np.abs(np.diff(logs)))) / _MAD_OF_DIFFERENCES
    scaled = logs / max(noise, _MIN_CHANGE / 10)
    search = ruptures.Pelt(model="l2", min_size=MIN_LENGTH, jump=1).fit(scaled)
    ends = [0, *search.predict(pen=_PENALTY * math.log(len(values)))]
    levels = [float(np.median(logs[a:b])) for a, b in pairwise(ends)]
    found = [
        ChangePoint(end, math.expm1(after - before))
        for end, (before, after) in zip(ends[1:-1], pairwise(levels), strict=True)
    ]
    return tuple(point for point in found if abs(point.change) >= _MIN_CHANGE)
