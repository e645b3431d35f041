"""Fixtures that many tests share: one thread, a tiny random model, a small synthetic world."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
import torch
from hypothesis import settings

from mmar_jobs.cli import run_command
from mmar_jobs.errors import ExitCode
from mmar_jobs.tiny.build import TinyWorld, build_world
from mmar_jobs.tiny.model import save_random_model
from tests.fakes import Fails

# In CI the laws meet the same cases each time: a submission is judged by its change, and everyone's
# own runs, which are random, look for new ones.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("dev", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

# Several workers run on few cores; one thread each also makes sums come out in one order.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_logs() -> Iterator[None]:
    """A command sets up the logs of its process: they end with the test whose output they go to."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights in the original file layout; read only."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_random_model(folder, seed=0)
    return folder


@pytest.fixture(scope="session")
def other_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with other random weights."""
    folder = tmp_path_factory.mktemp("other-model") / "tiny"
    save_random_model(folder, seed=1)
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    """A synthetic world of 12 training, 8 held-out and 6 benchmark questions; read only."""
    folder = tmp_path_factory.mktemp("world")
    return build_world(folder, seed=7, num_train=12, num_heldout=8, num_benchmark=6)


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Run a command that must fail with a code and one line, which is returned."""

    def check(code: ExitCode, name: str, *arguments: str) -> str:
        assert code == run_command(name, arguments)
        said = capsys.readouterr().err
        line = said.splitlines()[-1]
        assert line.startswith(f"mmar-jobs {name}: ")
        assert "Traceback" not in said
        return line

    return check
