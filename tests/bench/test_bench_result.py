"""Tests of a measured figure: what it carries, and what may be compared."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmar_jobs.bench.result import parse_measurements, write_measurements
from mmar_jobs.errors import DataError
from mmar_jobs.lines import Line
from tests.bench.figures import HERE, speed

SPEED = speed((3.0, 1.0, 2.0))


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
    "other", [{"device": "NVIDIA H100 80GB HBM3"}, {"driver": "570.1"}], ids=["device", "driver"]
)
def test_other_hardware_is_named(other: dict[str, Any]) -> None:
    """Another device or driver is foreign; software and commit are what a comparison varies."""
    (key, value), *_ = other.items()
    there = dataclasses.replace(HERE, **other)
    assert [f"{key} {getattr(HERE, key)}, not {value}"] == HERE.foreign_to(there)
    later = dataclasses.replace(HERE, packages={"torch": "2.12.0"}, image="i@sha256:1", commit="2")
    assert [] == HERE.foreign_to(later)
    assert ["image none to i@sha256:1", "torch 2.11.0 to 2.12.0"] == later.changes_from(HERE)


@given(st.lists(st.floats(-1e300, 1e300), min_size=1))
def test_what_was_written_is_read_again(values: list[float]) -> None:
    """Any figure comes back equal."""
    line = Line(1, 0, speed(values).render_json().encode())
    assert [speed(values)] == parse_measurements([line], "f")


def broken_rows() -> dict[str, str]:
    """Lines that are no result, by what is wrong with them."""
    row = json.loads(SPEED.render_json())
    without = {key: value for key, value in row.items() if key != "unit"}
    environment = {key: v for key, v in row["environment"].items() if key != "image"}
    return {
        "cut": SPEED.render_json()[:-30],
        "no object": "[1, 2]",
        "field missing": json.dumps(without),
        "environment cut": json.dumps(row | {"environment": environment}),
        "edited median": json.dumps(row | {"value": 9.0}),
        "no values": json.dumps(row | {"values": []}),
        "not numbers": json.dumps(row | {"values": [1.0, None]}),
        "NaN": json.dumps(row | {"values": [float("nan")]}),
        "direction": json.dumps(row | {"direction": "up"}),
        "unknown key": json.dumps(row | {"more": 1}),
        "package": json.dumps(row | {"environment": row["environment"] | {"packages": {"a": 1}}}),
    }


@pytest.mark.parametrize("kind", broken_rows())
def test_a_line_that_is_no_result_is_named(kind: str) -> None:
    """The message names file and line."""
    with pytest.raises(DataError, match="f line 7 is no result of `bench --json`: "):
        parse_measurements([Line(7, 0, broken_rows()[kind].encode())], "f")


def test_a_figure_twice_and_an_empty_file_are_refused() -> None:
    """Which of two would be judged is nobody's guess; nothing says nothing."""
    line = Line(1, 0, SPEED.render_json().encode())
    with pytest.raises(DataError, match="measured twice in the same case"):
        parse_measurements([line, line], "f")
    with pytest.raises(DataError, match="holds no results"):
        parse_measurements([], "f")


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
