"""A run that is killed again and again ends with the same bytes as one that was left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmar_jobs.tiny import tiny_model_folder
from mmar_jobs.tiny.build import TinyWorld, build_world

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


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    """Start a run in a session of its own, so that a kill cannot reach the test."""
    return subprocess.Popen(
        arguments,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finish(arguments: list[str]) -> float:
    """Run to the end; returns the wall time in seconds."""
    began = time.monotonic()
    process = start(arguments)
    _, errors = process.communicate(timeout=900)
    assert 0 == process.returncode, errors.decode()[-2000:]
    return time.monotonic() - began


def made(store: Path) -> dict[str, bytes]:
    """The submission, adapters and verdicts that a run left in its store, by path."""
    wanted = ("submission.zip", "adapter_model.safetensors", "verdict.json")
    found = [path for path in sorted(store.rglob("*")) if path.name in wanted]
    return {str(path.relative_to(store)): path.read_bytes() for path in found}


def kill_somewhere(process: subprocess.Popen[bytes], store: Path, chance: random.Random) -> bool:
    """Kill -9 after at most one more durable file and a random moment; False if it ended first."""
    target = num_files(store) + chance.randrange(2)
    while num_files(store) < target and process.poll() is None:
        time.sleep(0.01)
    try:
        process.wait(timeout=chance.uniform(0, 2.5))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def num_files(store: Path) -> int:
    """How many files the run has made durable so far."""
    return sum(1 for path in store.rglob("*") if not path.name.startswith("."))


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
