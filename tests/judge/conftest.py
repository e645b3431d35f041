"""The files that a judge is asked about."""

from pathlib import Path

import pytest

from tests.judge.cases import NUM_ITEMS
from tests.prediction_files import write_rows


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Predictions and META of six questions; the last two answers are wrong and missing."""
    meta, predictions = [], []
    for i in range(NUM_ITEMS):
        meta.append(
            {
                "id": f"q{i}",
                "audio_path": f"./audio/q{i}.wav",
                "question": f"What is number {i}?",
                "choices": ["a dog", "a cat"],
                "answer": "a dog",
                "modality": "sound",
                "category": "Signal Layer" if i % 2 else "Semantic Layer",
                "sub-category": "x",
                "thinking": f"reference {i}",
                "rubric": [
                    {"name": f"point {k}", "scoring_point": f"hears {k}", "choices": [0, 1]}
                    for k in range(5)
                ],
            }
        )
        predictions.append(
            {
                "id": f"q{i}",
                "thinking_prediction": f"thinking of {i}",
                "answer_prediction": "a dog" if i < NUM_ITEMS - 2 else "a cat",
            }
        )
    return (
        write_rows(tmp_path / "predictions.jsonl", predictions[:-1]),
        write_rows(tmp_path / "meta.jsonl", meta),
    )
