"""Tests of measuring two programs in turns."""

import sys
from pathlib import Path

import pytest

from mmar_jobs.bench.result import Measurement
from mmar_jobs.bench.turns import Side, measure_in_turns
from mmar_jobs.errors import DataError, SettingsError
from tests.bench.figures import accuracy, speed

ROOT = Path(__file__).resolve().parents[2]


def test_sides_alternate_and_keep_one_value_a_turn() -> None:
    """New, baseline, baseline, new: and each turn's repeats become their median."""
    calls: list[str] = []

    def measured(side: str) -> list[Measurement]:
        calls.append(side)
        return [speed([len(calls), 100.0, len(calls)], turns=""), accuracy([True, False])]

    new, baseline = measure_in_turns(
        lambda: measured("n"), lambda: measured("b"), num_turns=3, label="x"
    )
    assert "nbbnnb" == "".join(calls)
    assert (1.0, 4.0, 5.0) == new[0].values
    assert (2.0, 3.0, 6.0) == baseline[0].values
    assert "x" == new[0].detail["turns"] == baseline[0].detail["turns"]
    assert accuracy([True, False]) == new[1]


def test_figures_that_change_between_turns_are_refused() -> None:
    """Values of two figures must not become one."""
    names = iter("abcdef")

    def measured() -> list[Measurement]:
        return [speed([1.0], name=next(names))]

    with pytest.raises(DataError, match="not the same figure in every turn"):
        measure_in_turns(measured, measured, num_turns=2, label="x")


def test_a_place_that_is_no_program_is_refused(tmp_path: Path) -> None:
    """Neither an interpreter nor a checkout."""
    with pytest.raises(SettingsError, match="neither a Python interpreter nor a checkout"):
        Side.at(tmp_path)


def test_a_bench_that_fails_says_why(tmp_path: Path) -> None:
    """The last line of what it said."""
    with pytest.raises(DataError, match=r"ended with 2: .*no-such-bench"):
        Side(sys.executable, ROOT).measure(["no-such-bench"])
