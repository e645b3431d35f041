"""A run that is killed again and again ends with the same bytes as one that was left alone."""

import random
import sys
from pathlib import Path

import pytest

from mmar_jobs.tiny import tiny_model_folder
from mmar_jobs.tiny.build import TinyWorld, build_world
from tests.kills import finish, kill_somewhere, start

NUM_KILLS = 20
SEED = 7


def command(world: TinyWorld, store: Path) -> list[str]:
    """A small run of two iterations that still does all that a large one does."""
    settings = {
        "store": store,
        "run-id": "killed",
        "model": tiny_model_folder(),
        "questions": world.train,
        "heldout": world.heldout,
        "benchmark": world.benchmark,
        "iterations": 2,
        "prompt.version": "baseline",
        "sampling.num-candidates": 8,
        "sampling.max-tokens": 96,
        "sampling.questions-per-shard": 16,
        "filter.weights.mastered": 1,
        "lora.quantization": "none",
        "optim.learning-rates": 1e-4,
        "checkpoint-every-steps": 2,
        "engine.threads": 1,
        "gate.patience": 5,
    }
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    return [sys.executable, "-m", "mmar_jobs", "run", *flags]


def made(store: Path) -> dict[str, bytes]:
    """The submission, adapters and verdicts that a run left in its store, by path."""
    wanted = ("submission.zip", "adapter_model.safetensors", "verdict.json")
    found = [path for path in sorted(store.rglob("*")) if path.name in wanted]
    return {str(path.relative_to(store)): path.read_bytes() for path in found}


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    """Twenty kill -9 over one run leave the same submission, adapters and verdicts."""
    world = build_world(
        tmp_path / "world", seed=SEED, num_train=64, num_heldout=40, num_benchmark=24
    )
    finish(command(world, tmp_path / "undisturbed"))
    store = tmp_path / "killed"
    chance = random.Random(SEED)
    num_kills = sum(
        kill_somewhere(start(command(world, store)), store, chance) for _ in range(NUM_KILLS)
    )
    assert NUM_KILLS == num_kills, "the run ended before it was killed often enough: make it longer"
    finish(command(world, store))
    expected = made(tmp_path / "undisturbed")
    assert 5 == len(expected), "one submission, two adapters, two verdicts"
    assert expected == made(store)
