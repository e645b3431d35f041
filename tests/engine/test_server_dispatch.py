"""Who is asked when: many questions under way, spread over servers, stopped at once."""

import asyncio
import gc
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from mmar_jobs.engine import Completion, Request, StreamingEngine
from mmar_jobs.engine.fleet import Dispatcher
from mmar_jobs.engine.local import LocalEngine
from mmar_jobs.engine.pace import FIRST_LIMIT
from mmar_jobs.errors import DataError, TryAgain
from tests.engine.cases import GREEDY, QUICK, Connect, ask, requests
from tests.engine.faults import Fault
from tests.engine.loopback import LoopbackVllm, serve, wait_until


def test_it_streams(vllm: LoopbackVllm, connect: Connect, local: LocalEngine) -> None:
    """Stages know by its type that it keeps many questions under way."""
    assert isinstance(connect(vllm.url), StreamingEngine)
    assert not isinstance(local, StreamingEngine)


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
    asked = [replace(requests()[1], question_id=f"q{index}") for index in range(80)]
    ask(connect(vllm.url), asked, replace(GREEDY, max_tokens=1))
    assert vllm.most_at_once > FIRST_LIMIT


def test_failures_at_once_are_one_error(caplog: pytest.LogCaptureFixture) -> None:
    """Of requests that fail together one error is raised, and asyncio complains of none as lost."""

    async def fail(job: int) -> None:
        raise DataError(f"job {job}")

    with pytest.raises(DataError, match="job"):
        asyncio.run(
            Dispatcher[int, None](lambda under_way: len(under_way) < 4, fail).run(
                range(4), lambda *_: None
            )
        )
    gc.collect()
    assert not [record.getMessage() for record in caplog.records if record.name == "asyncio"]
