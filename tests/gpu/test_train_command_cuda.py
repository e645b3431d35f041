"""The train command on two GPUs: killed in the middle, it goes on with two processes or with one.

Not here: the same on CPUs, byte for byte (tests/test_train_command.py).
"""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

if torch.cuda.device_count() < 2:
    pytest.skip("needs two GPUs", allow_module_level=True)

from mmar_jobs.errors import ExitCode
from mmar_jobs.layout import adapter_key, checkpoint_key
from tests.train_runs import RUN_ID, filter_for, finish, generate_in, start, wait_for_checkpoint

# Rows of the tiny model are shorter than a block of NF4.
TRAIN: dict[str, Any] = {
    "hardware_device": "cuda",
    "optim_num-epochs": 12,
    "checkpoint-every-steps": 4,
}


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which a run waits for its training; to be copied."""
    return filter_for(generate_in(tmp_path_factory.mktemp("two-gpus")))


def losses(store: Path) -> list[float]:
    """Of every step."""
    path = store / adapter_key(RUN_ID, 1) / "steps.json"
    found: list[float] = json.loads(path.read_text())["losses"]
    return found


@pytest.fixture(scope="module")
def expected(filtered: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of an undisturbed training on one GPU."""
    store = Path(shutil.copytree(filtered, tmp_path_factory.mktemp("alone") / "store"))
    code, said = finish(start(store, **TRAIN))
    assert code == ExitCode.DONE, said
    return losses(store)


def kill_one_of_two(store: Path) -> None:
    """After the first checkpoint, wherever the second process is in its step."""
    process = start(store, hardware_processes=2, **TRAIN)
    wait_for_checkpoint(store, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    began_s = time.monotonic()
    os.kill(int(children[1]), signal.SIGKILL)
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
    code, said = finish(start(store, hardware_processes=num_processes, **TRAIN))
    assert code == ExitCode.DONE, said
    [resumed] = [line for line in said.splitlines() if "training_resumed" in line]
    assert json.loads(resumed)["num_steps"] == int(newest.stem.removeprefix("step-"))
    found = losses(store)
    assert len(found) == len(expected) > 20
    assert found == pytest.approx(expected, rel=2e-2)
