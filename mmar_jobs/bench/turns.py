"""Measure a change and its baseline in turns, so that a drift of the machine hits both alike.

Not here: judging the difference (difference.py). The order is new, baseline, baseline, new, and so
on: neither side always runs on what the other left warm.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmar_jobs.bench.child import last_words
from mmar_jobs.bench.difference import NUM_ITEMS, TURNS
from mmar_jobs.bench.result import Measurement, parse_measurements
from mmar_jobs.errors import DataError, SettingsError
from mmar_jobs.lines import open_lines


@dataclass(frozen=True, slots=True)
class Side:
    """One of both programs: an interpreter, and the folder that holds its `mmar_jobs`."""

    python: str
    folder: Path

    @classmethod
    def at(cls, place: Path) -> "Side":
        """An interpreter of an environment of its own, or a checkout for this interpreter."""
        if place.is_file():
            return cls(str(place.absolute()), Path.cwd())
        if (place / "mmar_jobs" / "__main__.py").is_file():
            return cls(sys.executable, place.absolute())
        raise SettingsError(f"{place} is neither a Python interpreter nor a checkout")

    def measure(self, arguments: Sequence[str]) -> list[Measurement]:
        """Run `bench ARGUMENTS` and read its figures; DataError with its last words on failure."""
        with tempfile.TemporaryDirectory(prefix="mmar-bench-") as folder:
            file = Path(folder) / "results.jsonl"
            command = [self.python, "-m", "mmar_jobs", "bench", *arguments, "--json", str(file)]
            done = subprocess.run(  # noqa: S603 - the user named it
                command, cwd=self.folder, capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                raise DataError(
                    f"bench in {self.folder} ended with {done.returncode}: {last_words(done)}"
                )
            return parse_measurements(open_lines(str(file)), str(file))


def measure_in_turns(
    measure_new: Callable[[], list[Measurement]],
    measure_baseline: Callable[[], list[Measurement]],
    *,
    num_turns: int,
    label: str,
) -> tuple[list[Measurement], list[Measurement]]:
    """The figures of both, with one value a turn (the median of that turn's repeats).

    `label` marks both as measured together. DataError where a side's figures change between turns.
    """
    new: list[list[Measurement]] = []
    baseline: list[list[Measurement]] = []
    for turn in range(num_turns):
        sides = [(new, measure_new), (baseline, measure_baseline)]
        for kept, measure in sides if turn % 2 == 0 else reversed(sides):
            kept.append(measure())
    return list(_joined(new, label)), list(_joined(baseline, label))


def _joined(turns: Sequence[list[Measurement]], label: str) -> Iterator[Measurement]:
    for found in zip(*turns, strict=True):
        if len({one.key for one in found}) != 1:
            raise DataError(f"{found[0].name}: not the same figure in every turn")
        last = found[-1]
        if NUM_ITEMS in last.detail:
            yield last  # the same items each time: nothing to repeat
            continue
        values = tuple(one.value for one in found)
        yield replace(last, values=values, detail={**last.detail, TURNS: label})
