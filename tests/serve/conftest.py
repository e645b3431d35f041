"""The real vLLM: one server of the embedded model for all tests, and a small run to ask it for."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mmar_jobs.layout import adapter_key
from mmar_jobs.records import Candidate
from mmar_jobs.tiny import tiny_model_folder
from mmar_jobs.tiny.build import TinyWorld, build_world
from tests.serve.job import Job
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
    server = Vllm(environment, tiny_model_folder(), place / "base")
    try:
        server.start()
        server.wait()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def world(place: Path) -> TinyWorld:
    """Questions enough that a server can be killed amid them."""
    return build_world(place / "world", seed=7, num_train=48, num_heldout=24, num_benchmark=48)


@pytest.fixture(scope="session")
def ingested(place: Path, world: TinyWorld) -> Job:
    """A run that has its questions and no answer; read only."""
    (place / "ingested").mkdir()
    job = Job(place / "ingested", world)
    job.do("ingest")
    return job


@pytest.fixture(scope="session")
def undisturbed(vllm: Vllm, ingested: Job, place: Path) -> list[Candidate]:
    """Greedy answers to the benchmark when nothing goes wrong."""
    return ingested.copy(place / "undisturbed").greedy(vllm.url)


@pytest.fixture(scope="session")
def trained(vllm: Vllm, ingested: Job, place: Path) -> Job:
    """A run that has an adapter, by the served base's answers."""
    job = ingested.copy(place / "trained")
    job.do("generate", servers=vllm.url)
    job.do("filter")
    job.do("train")
    return job


@pytest.fixture(scope="session")
def adapter(trained: Job) -> Path:
    """The adapter's folder."""
    return trained.store / adapter_key("r", 1)
