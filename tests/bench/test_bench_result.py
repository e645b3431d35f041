"""Tests of a measured figure: what it carries, and what may be compared."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from mmar_jobs.bench.result import Environment, Measurement, write_measurements

HERE = Environment("NVIDIA H200", "580.159.04", "3.12.3", {"torch": "2.11.0"}, "c1e499c")
SPEED = Measurement(
    "train/tokens_per_s", "tokens/s", "higher", (3.0, 1.0, 2.0), {"tokens": 8192}, HERE
)


def test_the_value_is_the_median_of_the_repeats() -> None:
    """One slow repeat does not move the figure, and all of them are written down."""
    written = json.loads(SPEED.render_json())
    assert written["value"] == 2.0
    assert (written["low"], written["high"]) == (1.0, 3.0)
    assert written["values"] == [3.0, 1.0, 2.0]
    assert written["repeats"] == 3
    assert written["environment"]["device"] == "NVIDIA H200"
    assert written["case"] == {"tokens": 8192}


@pytest.mark.parametrize(
    "other",
    [{"device": "NVIDIA H100 80GB HBM3"}, {"driver": "570.1"}, {"packages": {"torch": "2.12.0"}}],
    ids=["device", "driver", "package"],
)
def test_figures_of_other_machines_are_not_comparable(other: dict[str, Any]) -> None:
    """Another device, driver or package is another measurement."""
    there = dataclasses.replace(HERE, **other)
    assert not SPEED.matches(dataclasses.replace(SPEED, environment=there))


def test_figures_of_other_cases_are_not_comparable() -> None:
    """Another row size is another measurement."""
    assert not SPEED.matches(dataclasses.replace(SPEED, case={"tokens": 4096}))


def test_figures_of_two_commits_are_comparable() -> None:
    """The commit is what a comparison is about."""
    later = dataclasses.replace(HERE, commit="7abeeea")
    assert SPEED.matches(dataclasses.replace(SPEED, environment=later, values=(9.0,)))


def test_a_figure_that_is_no_number_is_refused() -> None:
    """JSON has no NaN: a bench that measured nothing must not look as if it had."""
    with pytest.raises(ValueError, match="Out of range float"):
        dataclasses.replace(SPEED, values=(float("nan"),)).render_json()


def test_a_file_is_whole_lines(tmp_path: Path) -> None:
    """Each line is one figure; nothing else is left beside the file."""
    path = tmp_path / "out.json"
    write_measurements(path, [SPEED])
    write_measurements(path, [SPEED, SPEED])
    assert [json.loads(line)["value"] for line in path.read_text().splitlines()] == [2.0, 2.0]
    assert [path] == list(tmp_path.iterdir())
