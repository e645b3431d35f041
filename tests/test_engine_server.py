"""Tests of the engine over servers, against HTTP on the loopback with faults on order.

The servers answer with the in-process engine, so every answer has one that it must equal.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from mmar_jobs.audio import Clip, decode, num_audio_tokens
from mmar_jobs.encode import load_processor
from mmar_jobs.engine import Completion, Request, Sampling, StreamingEngine
from mmar_jobs.engine.link import Patience
from mmar_jobs.engine.local import LocalEngine, open_local_engine
from mmar_jobs.engine.server import ServerEngine, Site, open_server_engine
from mmar_jobs.errors import DataError, GateError, MmarError, SettingsError, TryAgain
from mmar_jobs.identity import CANARY_TOLERANCE_NATS, check_canary
from mmar_jobs.recipes import EngineSettings
from mmar_jobs.records import Finish
from tests.fakes import make_question, make_request, sound_bytes, tone
from tests.vllm_server import Fault, LoopbackVllm, serve, wait_until

GREEDY = Sampling(temperature=0, top_p=1, top_k=0, repetition_penalty=1, max_tokens=12, seed=0)
DRAWN = replace(GREEDY, temperature=0.9, top_p=0.95, seed=3)
QUICK = Patience(outage_s=20, stall_s=0.6, poll_s=0.05, first_pause_s=0.02, longest_pause_s=0.1)


def clips() -> list[Clip]:
    """Four clips of unlike length."""
    return [
        decode(sound_bytes(tone(seconds=seconds, pitch_hz=pitch_hz), 16_000), "clip")
        for seconds, pitch_hz in [(1, 300), (0.4, 700), (2.3, 900), (1, 440)]
    ]


def requests(draws: Sequence[int] = (0,)) -> list[Request]:
    """Four questions of unlike length about them."""
    return [
        make_request(make_question(f"q{index}", text="What " * (index + 1) + "is it?"), draws, clip)
        for index, clip in enumerate(clips())
    ]


@pytest.fixture(scope="module")
def local(model_folder: Path) -> LocalEngine:
    """The model in this process."""
    return open_local_engine(model_folder, None, EngineSettings(threads=1))


@pytest.fixture(scope="module")
def other(other_model_folder: Path) -> LocalEngine:
    """Another model."""
    return open_local_engine(other_model_folder, None, EngineSettings(threads=1))


@pytest.fixture(scope="module")
def processor(model_folder: Path) -> Any:
    """The model's tokenizer and template."""
    return load_processor(model_folder)


@pytest.fixture
def vllm(local: LocalEngine) -> Iterator[LoopbackVllm]:
    """A server of the model."""
    with serve(local) as running:
        yield running


# Opens an engine over some servers.
Connect = Callable[..., ServerEngine]


@pytest.fixture
def connect(local: LocalEngine, processor: Any) -> Connect:
    """An engine over servers, which has little patience."""

    def open_engine(*urls: str, **options: Any) -> ServerEngine:
        site = Site(urls, options.get("key"), options.get("media_dir"), QUICK)
        patience = options.get("patience", QUICK)
        return ServerEngine(
            local.identity,
            processor,
            replace(site, patience=patience),
            tolerance_nats=CANARY_TOLERANCE_NATS,
        )

    return open_engine


def ask(engine: Any, asked: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
    """Answer without listening to progress."""
    found: list[list[Completion]] = engine.answer(asked, sampling, lambda _: None)
    return found


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_equals_the_engine_in_process(
    vllm: LoopbackVllm, connect: Connect, local: LocalEngine, penalty: float
) -> None:
    """Texts, token counts, logprobs, audio tokens and finishes are those of the same model here."""
    sampling = replace(GREEDY, repetition_penalty=penalty)
    served = ask(connect(vllm.url), requests(), sampling)
    for [mine], [expected] in zip(served, ask(local, requests(), sampling), strict=True):
        assert replace(expected, logprob_sum=0) == replace(mine, logprob_sum=0)
        assert expected.logprob_sum == pytest.approx(mine.logprob_sum, abs=1e-4)


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
    }
    assert expected == {name: body[name] for name in expected}
    assert 0 <= body["seed"] < 2**62
    assert "extra_body" not in body


def test_a_clip_travels_once(vllm: LoopbackVllm, connect: Connect) -> None:
    """The second question about a clip names it; a server that forgot it gets it again."""
    question = requests((0,))[2]
    asked = [replace(question, question_id=f"again-{index}") for index in range(3)]
    engine = connect(vllm.url)
    expected = ask(engine, [question], GREEDY)[0]

    class Chain:
        """Asks one after the other, so that each finds the clip at the server."""

        def __init__(self) -> None:
            self.left = list(asked)
            self.found: list[Sequence[Completion]] = []

        def answered(self, request: Request, found: Sequence[Completion]) -> Request | None:
            self.found.append(found)
            if len(self.left) == 1:
                vllm._sounds.clear()
            return self.left.pop(0) if self.left else None

        def waiting(self) -> None:
            """Nothing to do."""

    chain = Chain()
    engine.stream([question], GREEDY, chain)
    assert [expected] * 4 == [list(one) for one in chain.found]
    sent = [body["messages"][1]["content"][0]["audio_url"] is not None for body in vllm.bodies[1:]]
    assert [True, False, False, False, True] == sent


def test_clips_on_the_node_travel_by_address(
    vllm: LoopbackVllm, connect: Connect, tmp_path: Path
) -> None:
    """With a media folder the server reads the very samples from a file that any user may read."""
    engine = connect(vllm.url, media_dir=tmp_path)
    by_file = ask(engine, requests(), GREEDY)
    assert ask(connect(vllm.url), requests(), GREEDY) == by_file
    urls = [body["messages"][1]["content"][0]["audio_url"]["url"] for body in vllm.bodies[:4]]
    assert all(url.startswith(tmp_path.as_uri()) for url in urls)
    assert [0o644] * 4 == [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()]


def test_it_streams(vllm: LoopbackVllm, connect: Connect, local: LocalEngine) -> None:
    """Stages know by its type that it keeps many questions under way."""
    assert isinstance(connect(vllm.url), StreamingEngine)
    assert not isinstance(local, StreamingEngine)


def test_canary_tells_models_apart(
    vllm: LoopbackVllm, connect: Connect, local: LocalEngine, other: LocalEngine
) -> None:
    """The canary through the server is that of the model in process, and no other's."""
    served = connect(vllm.url).canary()
    check_canary(local.canary(), served, model="m")
    with pytest.raises(GateError, match="does not serve"):
        check_canary(other.canary(), served, model="m")


def test_another_name_is_refused(connect: Connect, local: LocalEngine) -> None:
    """A server of a model without our hash in its name is asked nothing."""
    with serve(local, name="qwen3-omni") as vllm:
        with pytest.raises(GateError, match="nothing was asked"):
            ask(connect(vllm.url), requests(), GREEDY)
        assert (0, 0) == (len(vllm.bodies), vllm.num_canaries)


def test_a_restart_with_other_weights_ends_it(
    vllm: LoopbackVllm, connect: Connect, other: LocalEngine
) -> None:
    """Under the same name and address other weights appear: their answers never arrive."""
    engine = connect(vllm.url)
    vllm.script = lambda number: vllm.restart(engine=other) if number == 2 else None  # type: ignore[func-returns-value]
    told: list[int] = []
    with pytest.raises(GateError, match="does not serve"):
        engine.answer(requests(range(2)), DRAWN, told.append)
    assert sum(told) <= 4


def test_a_restart_under_another_name_ends_it(vllm: LoopbackVllm, connect: Connect) -> None:
    """A server that comes back with another model refuses our name, which is no bad luck."""
    engine = connect(vllm.url)
    vllm.script = lambda number: vllm.restart(name="i2-0badc0de") if number == 1 else None  # type: ignore[func-returns-value]
    with pytest.raises(GateError, match="no longer serves"):
        ask(engine, requests(), GREEDY)


def test_a_restart_costs_nothing_but_time(
    vllm: LoopbackVllm, connect: Connect, local: LocalEngine
) -> None:
    """Connections cut in the middle are opened again, the model proven anew, all is answered."""
    engine = connect(vllm.url)
    vllm.script = lambda number: vllm.restart() if number == 1 else None  # type: ignore[func-returns-value]
    served = ask(engine, requests(), GREEDY)
    assert [c[0].text for c in ask(local, requests(), GREEDY)] == [c[0].text for c in served]
    assert vllm.num_canaries >= 2


FAULTS = {
    "busy": Fault(status=429, headers={"retry-after": "0.05"}),
    "broken": Fault(status=500),
    "overloaded": Fault(status=503),
    "cut": Fault(keep_bytes=40),
    "truncated": Fault(keep_bytes=40, garble=True),
    "lost": Fault(lost=True),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_faults_cost_nothing_but_time(
    vllm: LoopbackVllm, connect: Connect, local: LocalEngine, fault: Fault
) -> None:
    """Whatever becomes of one attempt, the next is asked the same, and no answer differs."""
    engine = connect(vllm.url)
    vllm.script = lambda number: fault if number in (1, 2) else None
    served = ask(engine, requests(), GREEDY)
    assert [c[0].text for c in ask(local, requests(), GREEDY)] == [c[0].text for c in served]
    seeds = Counter(body["seed"] for body in vllm.bodies)
    assert [1, 1, 2, 2] == sorted(seeds.values())


def test_a_storm_is_waited_out(vllm: LoopbackVllm, connect: Connect) -> None:
    """Half of two hundred calls fail in turns, and each question still has its one answer."""
    storm = [Fault(status=429), None, Fault(status=500), None, Fault(keep_bytes=9), None]
    vllm.script = lambda number: storm[number % len(storm)]
    asked = [replace(requests()[1], question_id=f"q{index}") for index in range(50)]
    told: list[int] = []
    answers = connect(vllm.url).answer(asked, replace(GREEDY, max_tokens=1), told.append)
    assert [1] * 50 == [len(completions) for completions in answers]
    assert 50 == sum(told)


def test_a_refused_request_is_a_data_error(vllm: LoopbackVllm, connect: Connect) -> None:
    """Status 400 is not tried again, and says what the server said."""
    vllm.script = lambda _: Fault(status=400, message="audio is too\nlong")
    with pytest.raises(DataError, match=r"refuses a request \(status 400\): audio is too long"):
        ask(connect(vllm.url), requests()[:1], GREEDY)
    assert 1 == len(vllm.bodies)


def test_a_server_that_is_gone_is_waited_for_so_long(vllm: LoopbackVllm, connect: Connect) -> None:
    """After the budget the stage ends with try again, and says which server and why."""
    vllm.script = lambda _: Fault(status=503)
    engine = connect(vllm.url, patience=replace(QUICK, outage_s=0.4))
    began_s = time.monotonic()
    with pytest.raises(TryAgain, match=r"has not answered for .* status 503") as caught:
        ask(engine, requests(), GREEDY)
    assert vllm.url in str(caught.value)
    assert 0.3 < time.monotonic() - began_s < 10


def test_nobody_there_is_try_again(connect: Connect) -> None:
    """An address where nothing listens is a server that has not started yet."""
    engine = connect("http://127.0.0.1:9", patience=replace(QUICK, outage_s=0.3))
    with pytest.raises(TryAgain, match="no connection"):
        engine.canary()


def test_the_key_is_sent_and_never_told(vllm: LoopbackVllm, connect: Connect) -> None:
    """With the key it answers; without it, one line names the variable and shows no key."""
    vllm.key = "sesame-7"
    with capture_logs() as logs:
        assert 4 == len(ask(connect(vllm.url, key="sesame-7"), requests(), GREEDY))
        with pytest.raises(SettingsError, match="VLLM_API_KEY") as caught:
            ask(connect(vllm.url, key="wrong-key"), requests(), GREEDY)
    assert "wrong-key" not in str(caught.value)
    assert "sesame" not in str(logs)


def test_too_short_a_context_is_a_setting(vllm: LoopbackVllm, connect: Connect) -> None:
    """What cannot fit is refused before it is sent."""
    vllm.max_model_len = 100
    with pytest.raises(SettingsError, match="--max-model-len"):
        ask(connect(vllm.url), requests()[:1], replace(GREEDY, max_tokens=90))
    assert not vllm.bodies


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


def test_siblings_of_a_clip_share_a_server(connect: Connect, local: LocalEngine) -> None:
    """Of two servers both work, and every question about one clip goes to the same."""
    asked = [
        replace(request, question_id=f"{request.question_id}-{index}")
        for index in range(6)
        for request in requests()
    ]
    with serve(local) as one, serve(local) as two:
        answers = ask(connect(one.url, two.url), asked, replace(GREEDY, max_tokens=2))
        names = [
            {body["messages"][1]["content"][0]["uuid"] for body in server.bodies}
            for server in (one, two)
        ]
    assert 24 == len(answers)
    assert all(names)
    assert not names[0] & names[1]


def test_a_dead_server_hands_over(connect: Connect, local: LocalEngine) -> None:
    """When one of two servers is gone for good the other answers what it still owed."""
    with serve(local) as stays:
        with serve(local) as dies:
            engine = connect(dies.url, stays.url)
            engine.canary()
            dies.script = lambda _: Fault(lost=True)
            found: list[list[list[Completion]]] = []
            thread = threading.Thread(target=lambda: found.append(ask(engine, requests(), GREEDY)))
            thread.start()
            wait_until(lambda: bool(dies.bodies))
        thread.join(timeout=60)
    assert [[c[0].text for c in ask(local, requests(), GREEDY)]] == [
        [c[0].text for c in answers] for answers in found
    ]


def test_a_server_of_another_model_is_left_out(
    connect: Connect, local: LocalEngine, other: LocalEngine
) -> None:
    """Parent and child may be served side by side: each is asked by its own name only."""
    with serve(other) as child, serve(local) as parent, capture_logs() as logs:
        assert 4 == len(ask(connect(child.url, parent.url), requests(), GREEDY))
        assert not child.bodies
    assert ["server_skipped"] == [log["event"] for log in logs]


class Stopper:
    """A listener that stops as a stage does on SIGTERM."""

    def __init__(self) -> None:
        self.num_answered = 0

    def answered(self, request: Request, completions: Sequence[Completion]) -> None:
        """Count."""
        self.num_answered += 1

    def waiting(self) -> None:
        """Stop."""
        raise TryAgain("asked to stop")


def test_a_stop_is_heard_while_nothing_comes(vllm: LoopbackVllm, connect: Connect) -> None:
    """A stage that is to stop is not held up by questions under way."""
    vllm.script = lambda _: Fault(lost=True)
    engine = connect(vllm.url, patience=replace(QUICK, stall_s=60))
    began_s = time.monotonic()
    with pytest.raises(TryAgain, match="asked to stop"):
        engine.stream(requests(), GREEDY, Stopper())
    assert time.monotonic() - began_s < 10


def test_many_questions_are_under_way(vllm: LoopbackVllm, connect: Connect) -> None:
    """The server is given more than one question at a time, and more as its queue stays empty."""
    vllm.script = lambda _: Fault(stall_s=0.15)
    asked = [replace(requests()[1], question_id=f"q{index}") for index in range(60)]
    ask(connect(vllm.url), asked, replace(GREEDY, max_tokens=1))
    assert vllm.most_at_once > 8


def test_opened_from_settings(vllm: LoopbackVllm, model_folder: Path) -> None:
    """The folder gives the identity, the settings the addresses, with or without /v1."""
    chosen = EngineSettings(servers=f"{vllm.url}/v1/", threads=1)
    engine = open_server_engine(model_folder, None, chosen, key=None)
    assert 1 == len(engine.canary().token_ids) // 8
    assert (vllm.url,) == chosen.server_urls


@pytest.mark.parametrize(
    "address", ["localhost:8000", "ftp://x", "http://", "http://user:pw@host", "http://h?key=1"]
)
def test_addresses_are_checked(address: str) -> None:
    """What is no address, or holds a secret, is refused when settings are read."""
    with pytest.raises(ValueError, match=r"addresses like|leave user"):
        EngineSettings(servers=address)


def test_errors_keep_their_exit_codes() -> None:
    """A wrong model is final, a server that is gone is not."""
    codes = {kind: kind.exit_code for kind in (GateError, DataError, TryAgain, SettingsError)}
    assert all(issubclass(kind, MmarError) for kind in codes)
    assert [3, 3, 75, 2] == [int(code) for code in codes.values()]
