"""META and prediction files of the benchmark's form for the tests of compare and analyze."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

CHOICES = ("a dog", "a cat", "a bird", "rain")


def meta_row(i: int, **values: Any) -> dict[str, Any]:
    """Row i of META: its answer is choice i % 4, its category alternates."""
    row = {
        "id": f"q{i}",
        "audio_path": f"./audio/q{i}.wav",
        "question": f"What is number {i}?",
        "choices": list(CHOICES),
        "answer": CHOICES[i % len(CHOICES)],
        "modality": "sound",
        "category": "Semantic Layer" if i % 2 else "Signal Layer",
        "sub-category": f"sub {i % 3}",
        "timestamp": "00:00:00,00:00:12",
    }
    return row | values


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """One JSON line a row."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def answers(rows: Sequence[Mapping[str, Any]], right: Iterable[int], **values: Any) -> list[Any]:
    """A prediction of every META row, right at these places and a wrong choice elsewhere."""
    places = set(right)
    return [
        {
            "id": row["id"],
            "thinking_prediction": f"I hear number {i}.",
            "answer_prediction": row["answer"]
            if i in places
            else next(choice for choice in row["choices"] if choice != row["answer"]),
        }
        | values
        for i, row in enumerate(rows)
    ]
