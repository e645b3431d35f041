"""Failures of servers and connections: each by its kind costs time, or ends it in one line."""

import json
import re
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from mmar_jobs.engine.local import LocalEngine
from mmar_jobs.errors import DataError, GateError, MmarError, SettingsError, TryAgain
from tests.engine.cases import GREEDY, QUICK, Connect, ask, requests
from tests.engine.faults import Fault, error
from tests.engine.loopback import LoopbackVllm


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
    """Half of two hundred calls fail in turns, each question has its one answer, in few words."""
    storm = [Fault(status=429), None, Fault(status=500), None, Fault(keep_bytes=9), None]
    vllm.script = lambda number: storm[number % len(storm)]
    asked = [replace(requests()[1], question_id=f"q{index}") for index in range(50)]
    told: list[int] = []
    began_s = time.monotonic()
    with capture_logs() as logs:
        answers = connect(vllm.url).answer(asked, replace(GREEDY, max_tokens=1), told.append)
    assert [1] * 50 == [len(completions) for completions in answers]
    assert 50 == sum(told)
    said = [line for line in logs if line["event"] == "request_failed"]
    assert 1 <= len(said) <= 1 + (time.monotonic() - began_s) / 5


def test_a_refused_request_is_a_data_error(vllm: LoopbackVllm, connect: Connect) -> None:
    """Status 400 is not tried again, and says what the server said."""
    vllm.script = lambda _: Fault(status=400, message="audio is too\nlong")
    with pytest.raises(DataError, match=r"refuses a request \(status 400\): audio is too long"):
        ask(connect(vllm.url), requests()[:1], GREEDY)
    assert 1 == len(vllm.bodies)


def _ended_early(vllm: LoopbackVllm, monkeypatch: pytest.MonkeyPatch, *, code: int) -> None:
    """Let the first stream end after its first events, as vLLM ends it: with an error in it."""
    complete = vllm.complete_json
    failure = error("gone\nwrong")
    failure["error"]["code"] = code

    def fail(body: dict[str, Any]) -> tuple[int, bytes]:
        status, data = complete(body)
        if len(vllm.bodies) == 1:
            begun = data.split(b"\n\n")[:2]
            events = [*begun, f"data: {json.dumps(failure)}".encode(), b"data: [DONE]", b""]
            data = b"\n\n".join(events)
        return status, data

    monkeypatch.setattr(vllm, "complete_json", fail)


def test_an_error_within_a_stream_is_one(
    vllm: LoopbackVllm, connect: Connect, local: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that fails after status 200 was sent is asked again, by the code that it tells."""
    engine = connect(vllm.url)
    engine.canary()
    _ended_early(vllm, monkeypatch, code=500)
    with capture_logs() as logs:
        served = ask(engine, requests()[:1], GREEDY)
    assert [c[0].text for c in ask(local, requests()[:1], GREEDY)] == [c[0].text for c in served]
    assert 2 == len(vllm.bodies)
    [said] = [line for line in logs if line["event"] == "request_failed"]
    assert "status 500: gone wrong" == said["reason"]


@pytest.mark.parametrize("logprobs", [True, False])
def test_a_lost_piece_of_a_stream_is_missed(
    vllm: LoopbackVllm,
    connect: Connect,
    local: LocalEngine,
    monkeypatch: pytest.MonkeyPatch,
    *,
    logprobs: bool,
) -> None:
    """What the pieces hold is not believed: the server's own count of tokens is held against it."""
    complete = vllm.complete_json

    def lose(body: dict[str, Any]) -> tuple[int, bytes]:
        status, data = complete(body)
        events = data.split(b"\n\n")
        if len(vllm.bodies) == 1:
            del events[2]
        return status, b"\n\n".join(events)

    engine = connect(vllm.url)
    engine.canary()
    monkeypatch.setattr(vllm, "complete_json", lose)
    sampling = replace(GREEDY, logprobs=logprobs)
    with capture_logs() as logs:
        served = ask(engine, requests()[:1], sampling)
    assert [c[0].text for c in ask(local, requests()[:1], sampling)] == [c[0].text for c in served]
    [said] = [line for line in logs if line["event"] == "request_failed"]
    assert re.search(r"\d tokens, the server counted \d", said["reason"])


def test_a_server_that_counts_no_tokens_is_not_believed(
    vllm: LoopbackVllm, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its count a lost piece would not be missed; the reason is in the last line."""
    complete = vllm.complete_json

    def lose(body: dict[str, Any]) -> tuple[int, bytes]:
        status, data = complete(body)
        return status, b"\n\n".join(e for e in data.split(b"\n\n") if b"usage" not in e)

    monkeypatch.setattr(vllm, "complete_json", lose)
    with pytest.raises(TryAgain, match="no count of tokens, which stream_options asks for"):
        ask(connect(vllm.url, patience=replace(QUICK, outage_s=0.2)), requests()[:1], GREEDY)


def test_a_refusal_within_a_stream_is_a_data_error(
    vllm: LoopbackVllm, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not tried again, as if it had been the status."""
    engine = connect(vllm.url)
    engine.canary()
    _ended_early(vllm, monkeypatch, code=400)
    with pytest.raises(DataError, match=r"refuses a request \(status 400\): gone wrong"):
        ask(engine, requests()[:1], GREEDY)
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


def test_errors_keep_their_exit_codes() -> None:
    """A wrong model is final, a server that is gone is not."""
    codes = {kind: kind.exit_code for kind in (GateError, DataError, TryAgain, SettingsError)}
    assert all(issubclass(kind, MmarError) for kind in codes)
    assert [3, 3, 75, 2] == [int(code) for code in codes.values()]
