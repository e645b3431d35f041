"""One measured figure with all that is needed to compare it: case, repeats, environment.

Not here: measuring, reading the machine (environment.py), judging a difference.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal

Direction = Literal["higher", "lower", "none"]
Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Environment:
    """Where a figure was measured. `packages` maps a distribution to its version."""

    device: str
    driver: str
    python: str
    packages: Mapping[str, str]
    commit: str

    def matches(self, other: "Environment") -> bool:
        """Whether figures from both may be compared; the commit is what a comparison varies."""
        return (self.device, self.driver, self.python, self.packages) == (
            other.device,
            other.driver,
            other.python,
            other.packages,
        )


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

    def matches(self, other: "Measurement") -> bool:
        """Whether both measure the same thing on the same kind of machine."""
        same_figure = (self.name, self.unit, self.case) == (other.name, other.unit, other.case)
        return same_figure and self.environment.matches(other.environment)

    def render_json(self) -> str:
        """One line; keys in a fixed order."""
        environment = self.environment
        return json.dumps(
            {
                "name": self.name,
                "value": self.value,
                "unit": self.unit,
                "direction": self.direction,
                "repeats": len(self.values),
                "low": min(self.values),
                "high": max(self.values),
                "values": self.values,
                "case": dict(self.case),
                "detail": dict(self.detail),
                "environment": {
                    "device": environment.device,
                    "driver": environment.driver,
                    "python": environment.python,
                    "packages": dict(environment.packages),
                    "commit": environment.commit,
                },
            },
            allow_nan=False,
        )

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


def write_measurements(path: Path, measurements: Sequence[Measurement]) -> None:
    """Write JSON lines; the file is whole or not there."""
    part = path.with_name(f".{path.name}.part")
    part.write_text("".join(f"{one.render_json()}\n" for one in measurements), encoding="utf-8")
    part.replace(path)
