"""Figures for the tests of comparing them."""

import hashlib
from collections.abc import Sequence
from typing import Any

from mmar_jobs.bench.difference import TURNS, details_of
from mmar_jobs.bench.result import Environment, Measurement

HERE = Environment(
    device="NVIDIA H200",
    driver="580.159.04",
    python="3.12.3",
    packages={"torch": "2.11.0"},
    commit="c1e499c",
    image="",
    measured_at="2026-01-02T03:04:05+00:00",
)


def speed(values: Sequence[float], *, turns: str = "t", **changed: Any) -> Measurement:
    """Tokens a second; measured in turns with every other one of the same `turns`."""
    known: dict[str, Any] = {
        "name": "train/tokens_per_s",
        "unit": "tokens/s",
        "direction": "higher",
        "values": tuple(values),
        "case": {"tokens": 8192},
        "environment": HERE,
        "detail": {TURNS: turns} if turns else {},
    }
    return Measurement(**(known | changed))


def accuracy(right: Sequence[bool], **changed: Any) -> Measurement:
    """A share of items, each of them known."""
    digest = hashlib.sha256(str(len(right)).encode()).hexdigest()
    known: dict[str, Any] = {
        "name": "accuracy/official",
        "unit": "share",
        "direction": "higher",
        "values": (sum(right) / len(right),),
        "case": {"items": len(right)},
        "environment": HERE,
        "detail": details_of({str(i): bool(one) for i, one in enumerate(right)}, digest),
    }
    return Measurement(**(known | changed))
