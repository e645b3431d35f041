"""The real vLLM: one server of the embedded model for all tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mmar_jobs.tiny import tiny_model_folder
from tests.serve.vllm import Vllm, find_environment


@pytest.fixture(scope="session")
def environment() -> Path:
    """The environment with vLLM in it."""
    found = find_environment()
    if found is None:
        pytest.skip("vLLM is not installed: make test-serve installs it and runs this")
    return found


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for clips, logs and stores."""
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="session")
def vllm(environment: Path, place: Path) -> Iterator[Vllm]:
    """The embedded model, served."""
    (place / "clips").mkdir()
    server = Vllm(environment, tiny_model_folder(), 18461, place / "base.log", place / "clips")
    try:
        server.start()
        server.wait()
        yield server
    finally:
        server.kill()
