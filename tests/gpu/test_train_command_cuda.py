"""The train command on two GPUs: killed in the middle, it goes on with two processes or with one.

Not here: the same on CPUs, byte for byte (tests/test_train_command.py).
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

if torch.cuda.device_count() < 2:
    pytest.skip("needs two GPUs", allow_module_level=True)

from mmar_jobs.cli import run_command
from mmar_jobs.errors import ExitCode
from mmar_jobs.layout import adapter_key, checkpoint_key
from mmar_jobs.tiny import tiny_model_folder
from mmar_jobs.tiny.build import build_world

RUN_ID = "two-gpus"
MODEL = {"prompt.version": "v7", "model": tiny_model_folder(), "engine.threads": 4}
TRAIN = MODEL | {
    "hardware.device": "cuda",
    "lora.quantization": "none",  # rows of the tiny model are shorter than a block of NF4
    "optim.learning-rates": 1e-4,
    "optim.num-epochs": 12,
    "optim.token-budget": 1024,
    "checkpoint-every-steps": 4,
}


def flags(store: Path, values: dict[str, object]) -> list[str]:
    """Settings as a user writes them."""
    known = {"store": store, "run-id": RUN_ID} | values
    return [part for name, value in known.items() for part in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which a run waits for its training; to be copied."""
    folder = tmp_path_factory.mktemp("two-gpus")
    world = build_world(folder / "world", seed=7, num_train=48, num_heldout=8, num_benchmark=8)
    sources = {"questions": world.train, "heldout": world.heldout, "benchmark": world.benchmark}
    drawn = {"sampling.num-candidates": 8, "sampling.max-tokens": 96}
    kept = {"prompt.version": "v7", "filter.weights.mastered": 1}
    for name, values in (("ingest", sources), ("generate", MODEL | drawn), ("filter", kept)):
        assert ExitCode.DONE == run_command(name, flags(folder / "store", values))
    return folder / "store"


def start(store: Path, num_processes: int) -> "subprocess.Popen[str]":
    """The train command."""
    given = flags(store, TRAIN | {"hardware.processes": num_processes})
    command = [sys.executable, "-m", "mmar_jobs", "train", *given]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit code and what it said on standard error."""
    _, said = process.communicate(timeout=180)
    return process.returncode, said


def losses(store: Path) -> list[float]:
    """Of every step."""
    found: list[float] = json.loads((store / adapter_key(RUN_ID, 1) / "steps.json").read_text())[
        "losses"
    ]
    return found


@pytest.fixture(scope="module")
def expected(filtered: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of an undisturbed training on one GPU."""
    store = Path(shutil.copytree(filtered, tmp_path_factory.mktemp("alone") / "store"))
    code, said = finish(start(store, 1))
    assert code == ExitCode.DONE, said
    return losses(store)


def kill_one_of_two(store: Path) -> None:
    """After the first checkpoint, wherever the second process is in its step."""
    process = start(store, 2)
    folder = store / checkpoint_key(RUN_ID, 1)
    while not list(folder.glob("step-*.json")):
        assert process.poll() is None, finish(process)
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    began_s = time.monotonic()
    os.kill(int(children[1]), 9)
    code, said = finish(process)
    assert code == ExitCode.TRY_AGAIN, said
    assert time.monotonic() - began_s < 30
    assert "Traceback" not in said
    assert "run the same command again" in said.splitlines()[-1]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("num_processes", [2, 1])
def test_a_killed_process_ends_the_job_and_others_go_on(
    filtered: Path, expected: list[float], tmp_path: Path, num_processes: int
) -> None:
    """Exit code 75 in one line; the losses are those of one GPU, but for the order of sums."""
    store = Path(shutil.copytree(filtered, tmp_path / "store"))
    kill_one_of_two(store)
    (newest,) = (store / checkpoint_key(RUN_ID, 1)).glob("step-*.json")
    code, said = finish(start(store, num_processes))
    assert code == ExitCode.DONE, said
    [resumed] = [line for line in said.splitlines() if "training_resumed" in line]
    assert json.loads(resumed)["num_steps"] == int(newest.stem.removeprefix("step-"))
    found = losses(store)
    assert len(found) == len(expected) > 20
    assert found == pytest.approx(expected, rel=2e-2)
