"""The committed tiny model is what its card says."""

import json
from pathlib import Path

import pytest

from mmar_jobs.tiny import tiny_model_folder
from mmar_jobs.tiny.exam import examine
from mmar_jobs.tiny.model import save_random_model
from mmar_jobs.tiny.warmstart import CARD_FILE


def _card() -> dict[str, float]:
    card: dict[str, float] = json.loads((tiny_model_folder() / CARD_FILE).read_text())
    return card


def _three_errors(rate: float, *counts: int) -> float:
    return 3 * (rate * (1 - rate) * sum(1 / count for count in counts)) ** 0.5


def test_the_accuracy_on_the_card_is_reproduced() -> None:
    """On fresh questions the model is as good, and as deaf to silence, as the card claims."""
    card, measured = _card(), examine(tiny_model_folder(), seed=5, num_questions=256)
    accuracy = card["accuracy"]
    error = _three_errors(accuracy, 256, int(card["num_questions"]))
    assert accuracy == pytest.approx(measured["accuracy"], abs=error)
    chance = measured["accuracy_chance"]
    assert measured["accuracy_muted"] < chance + _three_errors(chance, 256)
    assert measured["mean_completion_tokens"] < 60


def test_the_card_leaves_room_to_learn() -> None:
    """The warm start is above chance, right on 35 to 65 percent, and gains nothing from silence."""
    card = _card()
    num_questions = int(card["num_questions"])
    assert num_questions >= 2_000
    assert 0.35 < card["accuracy"] < 0.65
    chance = card["accuracy_chance"]
    assert card["accuracy"] > chance + _three_errors(chance, num_questions)
    assert card["accuracy_muted"] < chance + _three_errors(chance, num_questions)


def test_the_folder_is_small_and_up_to_date(tmp_path: Path) -> None:
    """It is under 5 MB, and its config, tokenizer and template are what model.py writes today."""
    folder = tiny_model_folder()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5_000_000
    save_random_model(tmp_path, seed=0)
    for path in tmp_path.iterdir():
        if path.suffix != ".safetensors":
            assert path.read_bytes() == (folder / path.name).read_bytes(), path.name
