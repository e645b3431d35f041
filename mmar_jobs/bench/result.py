"""One measured figure with all that is needed to compare it: case, repeats, environment.

Not here: measuring, reading the machine (environment.py), judging a difference (difference.py).
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal, get_args

from mmar_jobs.errors import DataError
from mmar_jobs.lines import Line

Direction = Literal["higher", "lower", "none"]
Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Environment:
    """Where and when a figure was measured, and of what.

    `packages` maps a distribution to its version, `image` is a container image's reference by
    digest (empty outside of one), `measured_at` UTC by RFC 3339.
    """

    device: str
    driver: str
    python: str
    packages: Mapping[str, str]
    commit: str
    image: str
    measured_at: str

    def foreign_to(self, other: "Environment") -> list[str]:
        """What of the hardware differs, in words; figures of other hardware say nothing."""
        pairs = {
            "device": (self.device, other.device),
            "driver": (self.driver, other.driver),
        }
        return [
            f"{name} {mine}, not {theirs}"
            for name, (mine, theirs) in pairs.items()
            if mine != theirs
        ]

    def changes_from(self, other: "Environment") -> list[str]:
        """What of the software differs, which may be just what is judged: "torch 2.11 to 2.12"."""
        mine = {"python": self.python, "image": self.image, **self.packages}
        theirs = {"python": other.python, "image": other.image, **other.packages}
        return [
            f"{name} {theirs.get(name) or 'none'} to {mine.get(name) or 'none'}"
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
        ]


@dataclass(frozen=True, slots=True)
class Measurement:
    """A figure `name` in `unit`, once per repeat. `direction` says which way is better.

    `case` holds the settings that the figure depends on, `detail` what helps to read it.
    """

    name: str
    unit: str
    direction: Direction
    values: tuple[float, ...]
    case: Mapping[str, Scalar]
    environment: Environment
    detail: Mapping[str, object] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """Median of the repeats."""
        return median(self.values)

    @property
    def key(self) -> tuple[str, str, str]:
        """What is measured: name, unit and case; equal keys are the same figure."""
        return self.name, self.unit, json.dumps(dict(self.case), sort_keys=True)

    def to_row(self) -> dict[str, Any]:
        """What is written, keys in a fixed order; value, low and high follow from the values."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "direction": self.direction,
            "repeats": len(self.values),
            "low": min(self.values),
            "high": max(self.values),
            "values": list(self.values),
            "case": dict(self.case),
            "detail": dict(self.detail),
            "environment": asdict(self.environment),
        }

    def render_json(self) -> str:
        """One line."""
        return json.dumps(self.to_row(), allow_nan=False)

    def render_heading(self) -> str:
        """Device and case on one line; what is not set is left out."""
        given = [f"{key} {value}" for key, value in self.case.items() if value is not None]
        return f"{self.environment.device}: {', '.join(given)}"

    def render_text(self) -> str:
        """One line for people: name, median, range over the repeats."""
        line = f"{self.name:<38} {_number(self.value):>12} {self.unit:<9}"
        if len(self.values) > 1:
            line += f" ({_number(min(self.values))} to {_number(max(self.values))})"
        return line.rstrip()


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def parse_measurements(lines: Iterable[Line], name: str) -> list[Measurement]:
    """The figures of a results file; DataError for a line that is none, and for a figure twice."""
    found: dict[tuple[str, str, str], Measurement] = {}
    for line in lines:
        try:
            made = _parsed(line.value())
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            problem = f"has no {error}" if isinstance(error, KeyError) else error
            raise DataError(
                f"{name} line {line.number} is no result of `bench --json`: {problem}"
            ) from None
        if made.key in found:
            raise DataError(
                f"{name} line {line.number}: {made.name} was measured twice in the same case: "
                "keep one line of it"
            )
        found[made.key] = made
    if not found:
        raise DataError(f"{name} holds no results: run `mmar-jobs bench NAME --json FILE` again")
    return list(found.values())


def _parsed(row: Any) -> Measurement:
    environment = dict(row["environment"])
    packages = {name: _text(version) for name, version in environment.pop("packages").items()}
    made = Measurement(
        name=_text(row["name"]),
        unit=_text(row["unit"]),
        direction=row["direction"],
        values=tuple(row["values"]),
        case=row["case"],
        environment=Environment(
            packages=packages, **{name: _text(value) for name, value in environment.items()}
        ),
        detail=row["detail"],
    )
    if made.direction not in get_args(Direction):
        raise ValueError(f"its direction is {made.direction!r}")
    if not made.values or not all(map(math.isfinite, made.values)):
        raise ValueError("its values are not numbers")
    if made.to_row() != row:  # edited by hand, or cut
        raise ValueError(
            "median, range or count do not follow from its values, or keys are unknown"
        )
    return made


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} where text must be")
    return value


def write_measurements(path: Path, measurements: Sequence[Measurement]) -> None:
    """Write JSON lines; the file is whole or not there."""
    part = path.with_name(f".{path.name}.part")
    part.write_text("".join(f"{one.render_json()}\n" for one in measurements), encoding="utf-8")
    part.replace(path)
