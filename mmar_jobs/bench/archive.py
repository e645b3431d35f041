"""Results and logs in a store, by commit, and which commits are the baseline.

    <store>/benchmarks/<commit>/<bench>/<digest of its flags>.jsonl and .log
    <store>/benchmarks/baseline/00000007.json     cells and the commit of each; the last counts

A baseline is never overwritten: the next number is written where nobody else did so first, and what
was the baseline before stays known. Not here: who may move it (baseline_command.py), comparing
(judge_command.py).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mmar_jobs.bench.cells import Cell
from mmar_jobs.bench.result import Measurement, parse_measurements
from mmar_jobs.errors import DataError, TryAgain
from mmar_jobs.lines import Lines
from mmar_jobs.manifest import canonical_json
from mmar_jobs.store import Store, join_uri, open_store

_BASELINE: Final = "baseline/"
_RESULTS: Final = ".jsonl"


@dataclass(frozen=True, slots=True)
class Baseline:
    """The commit of each cell, by the cell's key; `number` counts the moves, 0 before the first."""

    number: int
    commits: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Archive:
    """The results of one store."""

    store: Store

    @classmethod
    def at(cls, store: str, *, endpoint_url: str | None = None) -> "Archive":
        """Below the store of the runs."""
        return cls(open_store(join_uri(store, "benchmarks"), endpoint_url=endpoint_url))

    def keep(self, commit: str, cell: Cell, *, log: Path, results: Path | None) -> None:
        """The log always, results where there are any; those of an earlier try are replaced."""
        self.store.upload(log, f"{commit}/{cell.key}.log")
        if results is not None:
            self.store.upload(results, f"{commit}/{cell.key}{_RESULTS}")

    def find(self, commit: str, cell: Cell) -> list[Measurement] | None:
        """The figures of a cell, None where it has none at this commit."""
        key = f"{commit}/{cell.key}{_RESULTS}"
        if not self.store.exists(key):
            return None
        return parse_measurements(Lines(self.store.read(key), key), join_uri(self.store.uri, key))

    def baseline(self) -> Baseline:
        """What counts now."""
        names = self.store.list(_BASELINE)
        if not names:
            return Baseline(0, {})
        try:
            number = int(Path(names[-1]).stem)
            commits = json.loads(self.store.read(names[-1]))["commits"]
            return Baseline(number, dict(commits))
        except (ValueError, TypeError, KeyError):
            uri = join_uri(self.store.uri, names[-1])
            raise DataError(
                f"{uri} is no baseline: delete it, the one before counts then"
            ) from None

    def move_baseline(self, commit: str) -> Baseline:
        """Make every cell of `commit` the baseline; others keep theirs.

        DataError where the commit has no results, TryAgain where another moved it meanwhile.
        """
        found = [name for name in self.store.list(f"{commit}/") if name.endswith(_RESULTS)]
        if not found:
            raise DataError(
                f"{self.store.uri} has no results of commit {commit}: run the benchmark"
            )
        before = self.baseline()
        keys = (name.removeprefix(f"{commit}/").removesuffix(_RESULTS) for name in found)
        moved = Baseline(before.number + 1, {**before.commits, **dict.fromkeys(keys, commit)})
        data = canonical_json({"commits": dict(moved.commits)})
        if not self.store.write_new(f"{_BASELINE}{moved.number:08}.json", data):
            raise TryAgain("the baseline was moved by somebody else: run the same command again")
        return moved
