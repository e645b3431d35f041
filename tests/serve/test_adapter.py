"""The loop over real servers: what was trained is merged, served, proven and promoted or not."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mmar_jobs.cli import run_command
from mmar_jobs.engine.local import open_local_engine
from mmar_jobs.engine.server import ServerEngine, open_server_engine
from mmar_jobs.errors import ExitCode, GateError
from mmar_jobs.identity import Canary, check_canary
from mmar_jobs.layout import CANARY
from mmar_jobs.recipes import EngineSettings
from mmar_jobs.records import Candidate
from mmar_jobs.tiny import tiny_model_folder
from tests.fakes import Fails
from tests.serve.cases import GREEDY, ask, requests
from tests.serve.job import Job
from tests.serve.proxy import proxy
from tests.serve.vllm import Vllm


@pytest.fixture(scope="module")
def child(environment: Path, adapter: Path, place: Path) -> Iterator[Vllm]:
    """Base and adapter merged into a folder named by their hash, and served."""
    cache = place / "merged"
    assert 0 == run_command(
        "merge", [str(tiny_model_folder()), str(adapter), "--cache", str(cache)]
    )
    [folder] = cache.iterdir()
    server = Vllm(environment, folder, place / "child")
    try:
        server.start()
        server.wait()
        yield server
    finally:
        server.kill()


def engine_of(adapter: Path, *urls: str) -> ServerEngine:
    """An engine over servers of base and adapter."""
    chosen = EngineSettings(servers=",".join(urls))
    return open_server_engine(tiny_model_folder(), adapter, chosen, key=None)


def test_the_served_child_is_what_was_trained(vllm: Vllm, child: Vllm, adapter: Path) -> None:
    """Its canary is the trainer's record and not the base's, its answers those of the adapter."""
    engine = engine_of(adapter, vllm.url, child.url)
    recorded = Canary.model_validate_json((adapter / CANARY).read_bytes())
    check_canary(recorded, engine.canary(), model="child")
    base = open_server_engine(tiny_model_folder(), None, EngineSettings(servers=vllm.url), key=None)
    with pytest.raises(GateError, match="does not serve"):
        check_canary(recorded, base.canary(), model="child")
    local = open_local_engine(tiny_model_folder(), adapter, EngineSettings(threads=1))
    assert [one.text for [one] in ask(local, requests(), GREEDY)] == [
        one.text for [one] in ask(engine, requests(), GREEDY)
    ]


def test_the_loop_ends_in_a_submission(
    vllm: Vllm, child: Vllm, trained: Job, tmp_path: Path
) -> None:
    """With parent and child served side by side, each is asked for its own, to the valid zip."""
    job = trained.copy(tmp_path)
    servers = f"{vllm.url},{child.url}"
    job.do("evaluate", servers=servers)
    job.do("infer", servers=servers)
    archive = tmp_path / "submission.zip"
    job.do("submit", "--output", str(archive))
    assert 0 == run_command("validate", [str(archive), "--meta", str(job.world.benchmark)])


def test_a_server_of_another_model_is_asked_nothing(
    child: Vllm, ingested: Job, tmp_path: Path, fails: Fails
) -> None:
    """The child's server where the base is wanted: exit code 3, and no answer in the store."""
    job = ingested.copy(tmp_path)
    line = fails(ExitCode.DATA, "generate", *job.flags(child.url))
    assert "nothing was asked" in line
    assert not list(job.store.rglob("part-*"))
    assert not list(job.store.rglob("journal"))


def test_a_server_that_comes_back_as_another_ends_it(
    vllm: Vllm, child: Vllm, ingested: Job, undisturbed: list[Candidate], tmp_path: Path
) -> None:
    """Amid the answers the base's address is the child's, under the base's name: none is kept."""
    job = ingested.copy(tmp_path)

    def turn(number: int) -> None:
        if number == 16:
            turning.turn_to(child.url, shown=vllm.name, hidden=child.name)

    with proxy(vllm.url, turn) as turning, pytest.raises(GateError, match="does not serve"):
        job.greedy(turning.url)
    assert turning.target == child.url
    assert undisturbed == job.greedy(vllm.url)
