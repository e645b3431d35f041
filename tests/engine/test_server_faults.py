"""Failures of servers and connections: each by its kind costs time, or ends it in one line."""

import time
from collections import Counter
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from mmar_jobs.engine.local import LocalEngine
from mmar_jobs.errors import DataError, GateError, MmarError, SettingsError, TryAgain
from tests.engine.cases import GREEDY, QUICK, Connect, ask, requests
from tests.engine.faults import Fault
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
