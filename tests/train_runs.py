"""A small run that waits for its training, and the train command as a user starts it.

Not here: any check.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from mmar_jobs.cli import run_command
from mmar_jobs.errors import ExitCode
from mmar_jobs.layout import checkpoint_key
from mmar_jobs.tiny import tiny_model_folder
from mmar_jobs.tiny.build import build_world

RUN_ID = "trained"
TRAIN = {
    "prompt.version": "v7",
    "model": tiny_model_folder(),
    "engine.threads": 1,
    "lora.quantization": "none",
    "optim.learning-rates": 1e-4,
    "optim.num-epochs": 4,
    "optim.token-budget": 1024,
    "checkpoint-every-steps": 3,
}


def flags(store: Path, values: dict[str, object]) -> list[str]:
    """Settings as a user writes them."""
    known = {"store": store, "run-id": RUN_ID} | values
    return [part for name, value in known.items() for part in (f"--{name}", str(value))]


def generate_in(folder: Path) -> Path:
    """A store with candidates, from which every objective can learn."""
    world = build_world(folder / "world", seed=7, num_train=48, num_heldout=8, num_benchmark=8)
    sources = {"questions": world.train, "heldout": world.heldout, "benchmark": world.benchmark}
    model = {name: TRAIN[name] for name in ("prompt.version", "model", "engine.threads")}
    drawn = {"sampling.num-candidates": 8, "sampling.max-tokens": 96, "objective": "grpo"}
    store = folder / "store"
    for name, values in (("ingest", sources), ("generate", model | drawn)):
        assert ExitCode.DONE == run_command(name, flags(store, values))
    return store


def filter_for(store: Path, **values: object) -> Path:
    """The same store, in which a run now waits for its training."""
    given = {"prompt.version": "v7", "filter.weights.mastered": 1} | values
    assert ExitCode.DONE == run_command("filter", flags(store, given))
    return store


def start(store: Path, *launcher: str, **values: object) -> "subprocess.Popen[str]":
    """The train command in a process and session of its own."""
    more = {name.replace("_", "."): value for name, value in values.items()}
    arguments = ["-m", "mmar_jobs", "train", *flags(store, TRAIN | more)]
    command = [sys.executable, *launcher, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit code and what it said on standard error."""
    _, said = process.communicate(timeout=600)
    return process.returncode, said


def wait_for_checkpoint(store: Path, process: "subprocess.Popen[str]") -> None:
    """Until one is durable."""
    folder = store / checkpoint_key(RUN_ID, 1)
    while not list(folder.glob("step-*.json")):
        assert process.poll() is None, finish(process)
        time.sleep(0.02)
