"""The train command as a user starts it: stopped, killed and spread over processes, one adapter."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from mmar_jobs.errors import ExitCode
from mmar_jobs.launch import free_port
from mmar_jobs.layout import ADAPTER_WEIGHTS, adapter_key, checkpoint_key
from mmar_jobs.store import open_store
from tests.train_runs import (
    RUN_ID,
    filter_for,
    finish,
    flags,
    generate_in,
    start,
    wait_for_checkpoint,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with candidates; to be copied."""
    return generate_in(tmp_path_factory.mktemp("train-command"))


@pytest.fixture(scope="module")
def filtered(generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which a run waits for its training; to be copied."""
    folder = tmp_path_factory.mktemp("filtered")
    return filter_for(Path(shutil.copytree(generated, folder / "store")))


@pytest.fixture
def store(filtered: Path, tmp_path: Path) -> Path:
    """A copy of its own."""
    return Path(shutil.copytree(filtered, tmp_path / "store"))


def adapter(store: Path) -> Path:
    """The finished adapter's weights."""
    return store / adapter_key(RUN_ID, 1) / ADAPTER_WEIGHTS


@pytest.fixture(scope="module")
def expected(filtered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights that an undisturbed training in one process ends with."""
    store = Path(shutil.copytree(filtered, tmp_path_factory.mktemp("expected") / "store"))
    code, said = finish(start(store))
    assert code == ExitCode.DONE, said
    assert [] == open_store(str(store)).list(f"{checkpoint_key(RUN_ID, 1)}/")
    return adapter(store)


def num_steps_of(store: Path) -> int:
    """The step of the only checkpoint."""
    (manifest,) = (store / checkpoint_key(RUN_ID, 1)).glob("step-*.json")
    return int(re.sub(r"\D", "", manifest.stem))


def check_near(store: Path, expected: Path) -> None:
    """The adapter of several processes is that of one but for the order of sums."""
    found, wanted = load_file(adapter(store)), load_file(expected)
    assert found.keys() == wanted.keys()
    worst = max((found[name] - wanted[name]).abs().max().item() for name in found)
    assert worst < 1e-5  # a tenth of one step of the learning rate
    steps = json.loads((store / adapter_key(RUN_ID, 1) / "steps.json").read_text())
    alone = json.loads(expected.with_name("steps.json").read_text())
    assert steps["losses"] == pytest.approx(alone["losses"], rel=1e-4)


def test_sigterm_ends_in_75_with_that_steps_checkpoint(store: Path, expected: Path) -> None:
    """Asked to stop, it saves within seconds; started again it ends with the same bytes."""
    process = start(store)
    wait_for_checkpoint(store, process)
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code, said = finish(process)
    assert code == ExitCode.TRY_AGAIN, said
    assert time.monotonic() - asked < 20
    assert "asked to stop (SIGTERM)" in said
    num_steps = num_steps_of(store)
    assert num_steps >= 3
    code, said = finish(start(store))
    assert code == ExitCode.DONE, said
    [resumed] = [line for line in said.splitlines() if "training_resumed" in line]
    assert json.loads(resumed)["num_steps"] == num_steps
    assert expected.read_bytes() == adapter(store).read_bytes()


def test_kill_9_at_random_moments_changes_nothing(store: Path, expected: Path) -> None:
    """Killed again and again, with a writer at work, it ends with the same bytes."""
    for pause_s in (0.0, 0.05, 0.13):
        process = start(store)
        wait_for_checkpoint(store, process)
        time.sleep(pause_s)
        process.kill()
        finish(process)
    code, said = finish(start(store))
    assert code == ExitCode.DONE, said
    assert expected.read_bytes() == adapter(store).read_bytes()


def test_two_processes_of_ours(store: Path, expected: Path) -> None:
    """One flag: the adapter is the one process's but for rounding, and only one wrote."""
    code, said = finish(start(store, hardware_processes=2))
    assert code == ExitCode.DONE, said
    assert said.count("job_finished") == 1
    check_near(store, expected)


def test_two_processes_of_a_policy_gradient(generated: Path, tmp_path: Path) -> None:
    """They share the scoring of candidates too, and end with the adapter of one process."""
    alone = filter_for(Path(shutil.copytree(generated, tmp_path / "alone")), objective="grpo")
    together = Path(shutil.copytree(alone, tmp_path / "together"))
    policy = {"objective": "grpo", "grpo_learning-rates": 1e-4}
    for store, num in ((alone, 1), (together, 2)):
        code, said = finish(start(store, hardware_processes=num, **policy))
        assert code == ExitCode.DONE, said
        assert said.count("job_finished") == 1
    check_near(together, adapter(alone))


def test_torchrun(store: Path, expected: Path) -> None:
    """The same under torchrun."""
    port = f"--master-port={free_port()}"
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node=2", port)
    code, said = finish(start(store, *launcher))
    assert code == ExitCode.DONE, said
    check_near(store, expected)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_or_killed_process_ends_the_job_with_75(
    store: Path, expected: Path, number: signal.Signals
) -> None:
    """SIGTERM reaches all and saves; a killed one ends the rest; one process goes on from there."""
    process = start(store, hardware_processes=2)
    wait_for_checkpoint(store, process)
    target = process.pid
    if number == signal.SIGKILL:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        target = int(children[1])
    os.kill(target, number)
    code, said = finish(process)
    assert code == ExitCode.TRY_AGAIN, said
    assert "Traceback" not in said
    code, said = finish(start(store))
    assert code == ExitCode.DONE, said
    check_near(store, expected)


def test_other_commands_refuse_several_processes(store: Path) -> None:
    """Run and infer have no use for them: one line, at once."""
    environment = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    command = [sys.executable, "-m", "mmar_jobs", "report", *flags(store, {})]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == ExitCode.SETTINGS
    assert "report runs in one process, 2 were started" in done.stderr
