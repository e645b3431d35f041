"""What a server answers: the same as the engine in process, and all options where it reads them."""

from dataclasses import replace
from typing import Any

import pytest

from mmar_jobs.audio import decode, num_audio_tokens
from mmar_jobs.engine import RepetitionDetection
from mmar_jobs.engine.local import LocalEngine
from mmar_jobs.errors import GateError, SettingsError
from mmar_jobs.records import Finish
from tests.engine.cases import DRAWN, GREEDY, Connect, ask, requests
from tests.engine.loopback import LoopbackVllm
from tests.fakes import make_question, make_request, sound_bytes, tone


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_equals_the_engine_in_process(
    vllm: LoopbackVllm, connect: Connect, local: LocalEngine, penalty: float
) -> None:
    """Texts, token counts, logprobs, audio tokens and finishes are those of the same model here."""
    sampling = replace(GREEDY, repetition_penalty=penalty)
    served = ask(connect(vllm.url), requests(), sampling)
    for [mine], [expected] in zip(served, ask(local, requests(), sampling), strict=True):
        assert replace(expected, logprobs=()) == replace(mine, logprobs=())
        assert expected.logprobs == pytest.approx(mine.logprobs, abs=1e-4)


def test_siblings_travel_in_one_request(vllm: LoopbackVllm, connect: Connect) -> None:
    """K draws are one request with n = K, each draw its own, and the same when asked again."""
    first = ask(connect(vllm.url), requests(range(4)), DRAWN)
    assert [4] * 4 == [body["n"] for body in vllm.bodies]
    texts = [one.text for completions in first for one in completions]
    assert 16 == len(set(texts))
    again = ask(connect(vllm.url), requests(range(4)), DRAWN)
    assert texts == [one.text for completions in again for one in completions]


def test_later_draws_of_a_question_are_others(vllm: LoopbackVllm, connect: Connect) -> None:
    """A second block of draws does not repeat the first."""
    engine = connect(vllm.url)
    first = ask(engine, requests(range(4))[:1], DRAWN)[0]
    second = ask(engine, requests(range(4, 8))[:1], DRAWN)[0]
    assert not {one.text for one in first} & {one.text for one in second}


def test_every_option_is_a_top_level_field(vllm: LoopbackVllm, connect: Connect) -> None:
    """The options stand where vLLM reads them, also those that are at their default."""
    ask(connect(vllm.url), requests()[:1], replace(DRAWN, top_k=7, repetition_penalty=1.1))
    [body] = vllm.bodies
    expected = {
        "temperature": 0.9,
        "top_p": 0.95,
        "top_k": 7,
        "min_p": 0.0,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "max_completion_tokens": 12,
        "logprobs": True,
        "return_token_ids": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "stream_interval": 64,
    }
    assert expected == {name: body[name] for name in expected}
    assert body["thinking_token_budget"] is body["repetition_detection"] is None
    assert 0 <= body["seed"] < 2**62
    assert "extra_body" not in body


def test_log_probabilities_come_only_where_they_are_asked_for(
    vllm: LoopbackVllm, connect: Connect, local: LocalEngine
) -> None:
    """The same tokens with and without, of a server and of the model here."""
    bare = replace(DRAWN, logprobs=False)
    for engine in (connect(vllm.url), local):
        [[with_them]] = ask(engine, requests()[:1], DRAWN)
        [[without]] = ask(engine, requests()[:1], bare)
        assert replace(with_them, logprobs=without.logprobs) == without
        assert (None, 0) == (without.logprob_sum, len(without.logprobs))
        assert len(with_them.logprobs) == with_them.num_tokens
    assert [True, False] == [body["logprobs"] for body in vllm.bodies]


def test_a_broken_frame_is_not_heard(vllm: LoopbackVllm, connect: Connect) -> None:
    """2.805 s are 280 whole frames and 36 tokens, though vLLM would make 281 and 37 of them."""
    clip = decode(sound_bytes(tone(seconds=2.805), 16_000), "clip")
    request = make_request(make_question("q"), (0,), clip)
    [[completion]] = ask(connect(vllm.url), [request], GREEDY)
    assert num_audio_tokens(len(clip.waveform)) == completion.audio_tokens == 36


def test_length_and_stop_are_told(vllm: LoopbackVllm, connect: Connect) -> None:
    """Hot draws end both ways; one that stopped counts the stop token and does not show it."""
    hot = replace(DRAWN, temperature=20.0, top_p=1, max_tokens=150)
    [completions] = ask(connect(vllm.url), requests(range(48))[:1], hot)
    stopped = [one for one in completions if one.finish is Finish.STOP]
    assert 0 < len(stopped) < 48
    assert all(one.num_tokens == 150 for one in completions if one.finish is Finish.LENGTH)
    assert not [one for one in completions if "<|im_end|>" in one.text]


def test_truncated_sound_is_told(
    vllm: LoopbackVllm, connect: Connect, monkeypatch: pytest.MonkeyPatch, local: LocalEngine
) -> None:
    """Audio tokens are counted in the prompt that the server used, for the stage to check."""
    complete = vllm.complete
    audio_id = local._audio_id

    def deaf(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        status, told = complete(body)
        ids = told["prompt_token_ids"]
        ids.remove(audio_id)
        return status, told

    monkeypatch.setattr(vllm, "complete", deaf)
    [[completion]] = ask(connect(vllm.url), requests()[:1], GREEDY)
    assert 12 == completion.audio_tokens


def test_what_stops_loops_is_sent_and_told(
    vllm: LoopbackVllm, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both options travel as vLLM names them; what it cut for repeating itself is no answer."""
    complete = vllm.complete

    def cut(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        status, told = complete(body)
        told["choices"][0]["finish_reason"] = "repetition"
        return status, told

    monkeypatch.setattr(vllm, "complete", cut)
    stopping = replace(
        GREEDY, thinking_token_budget=40, repetition_detection=RepetitionDetection(9, 2, 4)
    )
    [[completion]] = ask(connect(vllm.url), requests()[:1], stopping)
    assert Finish.LENGTH is completion.finish
    [body] = vllm.bodies
    assert 40 == body["thinking_token_budget"]
    assert {"max_pattern_size": 9, "min_pattern_size": 2, "min_count": 4} == body[
        "repetition_detection"
    ]


def test_another_prompt_is_caught(
    vllm: LoopbackVllm, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server with a chat template of its own is found out by the tokens of its prompt."""
    complete = vllm.complete

    def rephrased(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        status, told = complete(body)
        return status, told | {"prompt_token_ids": [5, *told["prompt_token_ids"]]}

    monkeypatch.setattr(vllm, "complete", rephrased)
    with pytest.raises(GateError, match="the server's prompt is not ours"):
        ask(connect(vllm.url), requests()[:1], GREEDY)


def test_too_short_a_context_is_a_setting(vllm: LoopbackVllm, connect: Connect) -> None:
    """What cannot fit is refused before it is sent."""
    vllm.max_model_len = 100
    with pytest.raises(SettingsError, match="--max-model-len"):
        ask(connect(vllm.url), requests()[:1], replace(GREEDY, max_tokens=90))
    assert not vllm.bodies
