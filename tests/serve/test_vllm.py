"""The engine over servers against vLLM itself, on the embedded model: nothing lost, nothing wrong.

Needs the environment that `make test-serve` installs.
"""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mmar_jobs.artifact import find_artifact
from mmar_jobs.audio import decode
from mmar_jobs.cli import run_command
from mmar_jobs.engine import Completion, Request, Sampling
from mmar_jobs.engine.local import LocalEngine, open_local_engine
from mmar_jobs.engine.probe import check_sampling
from mmar_jobs.engine.server import ServerEngine, open_server_engine
from mmar_jobs.errors import ExitCode
from mmar_jobs.identity import check_canary
from mmar_jobs.layout import adapter_key, candidates_key, verdict_key
from mmar_jobs.recipes import EngineSettings
from mmar_jobs.records import Candidate
from mmar_jobs.store import open_store
from mmar_jobs.tiny import tiny_model_folder
from mmar_jobs.tiny.build import TinyWorld
from tests.fakes import Fails, make_question, make_request, sound_bytes, tone
from tests.serve.vllm import Vllm

GREEDY = Sampling(temperature=0, top_p=1, top_k=0, repetition_penalty=1, max_tokens=64, seed=0)
DRAWN = Sampling(temperature=0.9, top_p=0.95, top_k=0, repetition_penalty=1, max_tokens=64, seed=3)
NUM_DRAWS = 8
NUM_QUESTIONS = 40
NUM_KILLS = 3


def requests(num_draws: int = 1) -> list[Request]:
    """Eight questions about clips of unlike length, none below a second.

    The audio tower pads a batch of chunks of one second: shorter clips hear that they have company.
    """
    return [
        make_request(
            make_question(f"q{index}", text="What " * (index % 3 + 1) + "is it?"),
            range(num_draws),
            decode(
                sound_bytes(tone(seconds=1 + 0.7 * (index % 4), pitch_hz=300.0), 16_000), "clip"
            ),
        )
        for index in range(8)
    ]


@pytest.fixture(scope="module")
def local() -> LocalEngine:
    """The same model in this process."""
    return open_local_engine(tiny_model_folder(), None, EngineSettings(threads=1))


def engine_of(vllm: Vllm, **options: Any) -> ServerEngine:
    """An engine over the server."""
    chosen = EngineSettings(servers=vllm.url, **options)
    return open_server_engine(tiny_model_folder(), None, chosen, key=None)


def ask(engine: Any, asked: list[Request], sampling: Sampling) -> list[list[Completion]]:
    """Answer without listening to progress."""
    found: list[list[Completion]] = engine.answer(asked, sampling, lambda _: None)
    return found


def test_canary_is_that_of_the_model_in_process(vllm: Vllm, local: LocalEngine) -> None:
    """In float32 the two agree to rounding, so a manifest's canary proves a server."""
    check_canary(local.canary(), engine_of(vllm).canary(), model="m")


def test_greedy_equals_the_engine_in_process(vllm: Vllm, local: LocalEngine) -> None:
    """Token for token, heard in full, with the same logprobs; and the same when asked again."""
    engine = engine_of(vllm)
    served = ask(engine, requests(), GREEDY)
    for [mine], [expected] in zip(served, ask(local, requests(), GREEDY), strict=True):
        assert (expected.text, expected.finish, expected.num_tokens, expected.audio_tokens) == (
            mine.text,
            mine.finish,
            mine.num_tokens,
            mine.audio_tokens,
        )
        assert expected.logprob_sum == pytest.approx(mine.logprob_sum, abs=1e-3)
    assert [c[0].text for c in served] == [c[0].text for c in ask(engine, requests(), GREEDY)]


def test_clips_on_the_node_sound_the_same(vllm: Vllm) -> None:
    """By address or in the request, the model hears the same samples."""
    by_file = ask(engine_of(vllm, media_dir=str(vllm.media_dir)), requests(), GREEDY)
    assert [c[0].text for c in ask(engine_of(vllm), requests(), GREEDY)] == [
        c[0].text for c in by_file
    ]


def test_siblings_differ_and_options_are_honoured(vllm: Vllm) -> None:
    """Sixteen draws of a question are not one, and the server ignores no option."""
    engine = engine_of(vllm)
    for completions in ask(engine, requests(16), DRAWN):
        assert 16 == len(completions)
        assert len({one.text for one in completions}) > 1
    check_sampling(engine, Sampling(0.9, 0.95, 5, 1.2, 64, 0))


def flags(world: TinyWorld, store: Path, *servers: str) -> dict[str, list[str]]:
    """The flags of each stage of a small run."""
    where = ["--store", str(store), "--run-id", "served"]
    model = ["--model", str(tiny_model_folder())]
    prompt = ["--prompt.version", "baseline"]
    engine = ["--engine.threads", "1"]
    if servers:
        engine += ["--engine.servers", ",".join(servers), "--engine.outage-s", "400"]
    sampling = ["--sampling.max-tokens", "96", "--sampling.questions-per-shard", "8"]
    drawn = [*sampling, "--sampling.num-candidates", str(NUM_DRAWS)]
    ingest = ["--questions", str(world.train), "--heldout", str(world.heldout)]
    mastered = ["--filter.weights.mastered", "1"]
    return {
        "ingest": [*where, *ingest, "--benchmark", str(world.benchmark)],
        "generate": [*where, *model, *prompt, *engine, *drawn, *mastered],
        "filter": [*where, *prompt, *mastered],
        "train": [
            *(*where, *model, *prompt, *engine, "--lora.quantization", "none"),
            *("--optim.learning-rates", "1e-3", "--optim.token-budget", "2048"),
        ],
        "evaluate": [*where, *model, *prompt, *engine, *sampling],
        "infer": [*where, *model, *prompt, *engine, *sampling],
        "submit": where,
    }


def run(stage: str, arguments: dict[str, list[str]]) -> None:
    """Run a stage to its end in this process."""
    assert ExitCode.DONE == run_command(stage, arguments[stage])


def start(stage: str, arguments: dict[str, list[str]]) -> subprocess.Popen[bytes]:
    """Start a stage as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "mmar_jobs", stage, *arguments[stage]],
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def candidates(store: Path, key: str) -> list[Candidate]:
    """What a finished artifact holds."""
    artifact = find_artifact(open_store(str(store)), key)
    assert artifact is not None
    return list(artifact.records(Candidate))


def is_complete(found: list[Candidate]) -> bool:
    """Whether every question has each of its draws once."""
    draws = Counter((candidate.question_id, candidate.draw) for candidate in found)
    questions = {candidate.question_id for candidate in found}
    return len(questions) == NUM_QUESTIONS and draws == Counter(
        (question, draw) for question in questions for draw in range(NUM_DRAWS)
    )


def num_shards(store: Path) -> int:
    """Shards and pieces of journal that are durable."""
    return sum(1 for _ in store.rglob("candidates/**/*.jsonl.gz"))


def test_a_killed_server_costs_nothing_but_time(
    vllm: Vllm, small_world: TinyWorld, tmp_path: Path
) -> None:
    """Kill -9 in the middle of generation, a restart, and each question has its draws once."""
    arguments = flags(small_world, tmp_path, vllm.url)
    run("ingest", arguments)
    process = start("generate", arguments)
    while vllm.load().is_idle:
        assert process.poll() is None
        time.sleep(0.05)
    vllm.kill()
    vllm.start()
    vllm.wait()
    _, errors = process.communicate(timeout=300)
    assert 0 == process.returncode, errors.decode()[-2000:]
    assert b"request_failed" in errors
    assert is_complete(candidates(tmp_path, candidates_key("served", 1)))


def test_a_killed_client_loses_nothing(vllm: Vllm, small_world: TinyWorld, tmp_path: Path) -> None:
    """Killed again and again, generation ends complete, and with the draws that it would have had.

    In float32 a seed gives the same draw in whatever company, but for ties within rounding.
    """
    arguments = flags(small_world, tmp_path / "killed", vllm.url)
    run("ingest", arguments)
    chance = random.Random(3)
    for _ in range(NUM_KILLS):
        process = start("generate", arguments)
        target = num_shards(tmp_path / "killed") + 1
        while num_shards(tmp_path / "killed") < target and process.poll() is None:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.5))
        process.kill()
        process.communicate(timeout=60)
    run("generate", arguments)
    found = candidates(tmp_path / "killed", candidates_key("served", 1))
    assert is_complete(found)
    undisturbed = flags(small_world, tmp_path / "whole", vllm.url)
    run("ingest", undisturbed)
    run("generate", undisturbed)
    expected = candidates(tmp_path / "whole", candidates_key("served", 1))
    differing = sum(a.completion != b.completion for a, b in zip(found, expected, strict=True))
    assert differing <= 0.02 * len(expected)


def test_the_loop_over_servers(
    vllm: Vllm, small_world: TinyWorld, environment: Path, place: Path, tmp_path: Path, fails: Fails
) -> None:
    """Every stage of a run, with the child merged and served beside its parent.

    Before the child is served nothing is asked in its name.
    """
    arguments = flags(small_world, tmp_path, vllm.url)
    for stage in ("ingest", "generate", "filter", "train"):
        run(stage, arguments)
    said = fails(ExitCode.DATA, "evaluate", *arguments["evaluate"])
    assert "nothing was asked" in said
    adapter = tmp_path / adapter_key("served", 1)
    cache = tmp_path / "cache"
    merge = [str(tiny_model_folder()), str(adapter), "--cache", str(cache)]
    assert ExitCode.DONE == run_command("merge", merge)
    [merged] = [path for path in cache.iterdir() if path.is_dir()]
    child = Vllm(environment, merged, 18462, place / "child.log", vllm.media_dir)
    child.start()
    try:
        child.wait()
        arguments = flags(small_world, tmp_path, vllm.url, child.url)
        for stage in ("evaluate", "infer", "submit"):
            run(stage, arguments)
    finally:
        child.kill()
    assert find_artifact(open_store(str(tmp_path)), verdict_key("served", 1)) is not None
