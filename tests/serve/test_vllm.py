"""The engine over servers against vLLM itself, on the embedded model.

Needs the environment that `make test-serve` installs.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmar_jobs.engine import RepetitionDetection, Sampling
from mmar_jobs.engine.local import LocalEngine, open_local_engine
from mmar_jobs.engine.probe import check_sampling
from mmar_jobs.engine.server import ServerEngine, open_server_engine
from mmar_jobs.identity import check_canary
from mmar_jobs.recipes import EngineSettings
from mmar_jobs.records import Finish
from mmar_jobs.tiny import tiny_model_folder
from tests.serve.cases import DRAWN, GREEDY, ask, requests
from tests.serve.vllm import Vllm


@pytest.fixture(scope="module")
def local() -> LocalEngine:
    """The same model in this process."""
    return open_local_engine(tiny_model_folder(), None, EngineSettings(threads=1))


def engine_of(vllm: Vllm, **options: Any) -> ServerEngine:
    """An engine over the server."""
    chosen = EngineSettings(servers=vllm.url, **options)
    return open_server_engine(tiny_model_folder(), None, chosen, key=None)


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


def test_processes_share_no_clips(environment: Path, place: Path, local: LocalEngine) -> None:
    """A clip that one of the server's processes has never heard is sent again to that one."""
    server = Vllm(environment, tiny_model_folder(), place / "processes", num_api_servers=2)
    try:
        server.start()
        server.wait()
        engine = engine_of(server)
        expected = [c[0].text for c in ask(local, requests(), GREEDY)]
        for _ in range(4):
            assert expected == [c[0].text for c in ask(engine, requests(), GREEDY)]
        log = server.log.read_text()
    finally:
        server.kill()
    assert all(f"ApiServer_{index}" in log for index in range(2))


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


def test_what_repeats_itself_is_cut(vllm: Vllm) -> None:
    """Where a penalty rewards repetition the model goes in circles, until the server ends it."""
    circling = replace(GREEDY, repetition_penalty=0.5)
    detecting = replace(circling, repetition_detection=RepetitionDetection(8, 1, 3))
    engine = engine_of(vllm)
    pairs = list(
        zip(ask(engine, requests(), circling), ask(engine, requests(), detecting), strict=True)
    )
    assert all(free.text.startswith(cut.text) for [free], [cut] in pairs)
    cuts = [cut for [free], [cut] in pairs if cut.num_tokens < free.num_tokens]
    assert cuts
    assert {Finish.LENGTH} == {cut.finish for cut in cuts}


def test_thinking_ends_with_its_budget(vllm: Vllm) -> None:
    """After four tokens of thinking its end is forced; what does not begin to think has none."""
    engine = engine_of(vllm)
    free = ask(engine, requests(), GREEDY)
    short = ask(engine, requests(), replace(GREEDY, thinking_token_budget=4))
    thinking = [one.text for [one] in free if one.text.startswith("<think>")]
    assert len(thinking) >= len(free) // 2
    assert all(len(text.partition("</think>")[0].split()) > 4 for text in thinking)
    ended = [one.text for [one] in short if one.text.startswith("<think>")]
    assert len(thinking) == len(ended)
    assert all("</think>" in text for text in ended)
    assert all(len(text.partition("</think>")[0].split()) <= 4 for text in ended)
