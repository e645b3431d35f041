"""The real vLLM with all that can go wrong on the way: nothing is lost, nothing is there twice.

Greedy answers must be those of an undisturbed run; draws may differ, for rounding depends on who
shares a batch, but each question must have all of its own.
"""

import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmar_jobs.drawn_tokens import MAX_ROUNDING_NATS, unpack_tokens
from mmar_jobs.records import Candidate
from mmar_jobs.tiny.build import TinyWorld, build_world
from tests.engine.faults import Fault
from tests.engine.loopback import wait_until
from tests.fakes import Track
from tests.kills import kill_somewhere, start
from tests.serve.job import Job, check_complete
from tests.serve.proxy import proxy
from tests.serve.vllm import Vllm

NUM_CLIENT_KILLS = 20
FAULTS = [
    Fault(status=429, headers={"retry-after": "0.2"}),
    Fault(status=500),
    Fault(status=503),
    Fault(keep_bytes=200),
    Fault(keep_bytes=200, garble=True),
    Fault(lost=True),
    Fault(stall_s=2),
]


def storm(number: int) -> Fault | None:
    """A dozen calls meet 429, 500 and 503; then every third fails, each in another way."""
    if number < 12:
        return FAULTS[number % 3]
    return FAULTS[number // 3 % len(FAULTS)] if number % 3 == 0 else None


def test_a_storm_changes_no_greedy_answer(
    vllm: Vllm, ingested: Job, undisturbed: list[Candidate], tmp_path: Path
) -> None:
    """Refusals, cuts, garbage, silence and delays: the answers are those of a quiet day."""
    with proxy(vllm.url, storm) as stormy:
        answers = ingested.copy(tmp_path).greedy(stormy.url)
    assert undisturbed == answers
    assert stormy.num_spoilt >= 12 + len(FAULTS)


def test_a_storm_loses_no_draw(vllm: Vllm, ingested: Job, world: TinyWorld, tmp_path: Path) -> None:
    """Each question has each of its draws once, each with all tokens that it was told to have."""
    with proxy(vllm.url, storm) as stormy:
        candidates = ingested.copy(tmp_path).draw(stormy.url, "--objective", "grpo")
    check_complete(candidates, world)
    for one in candidates:
        drawn = unpack_tokens(one.drawn_tokens)
        assert one.num_tokens == len(drawn.ids)
        rounding_nats = MAX_ROUNDING_NATS * one.num_tokens
        assert one.logprob_sum == pytest.approx(drawn.logprobs.sum(), abs=1.01 * rounding_nats)
    assert stormy.num_spoilt >= 12 + len(FAULTS)


def test_a_client_killed_twenty_times_loses_nothing(vllm: Vllm, tmp_path: Path) -> None:
    """With answers under way each time, it goes on where it was."""
    world = build_world(tmp_path / "world", seed=8, num_train=200, num_heldout=8, num_benchmark=6)
    job = Job(tmp_path, world)
    job.do("ingest")
    few = ["--sampling.num-candidates", "2", "--sampling.questions-per-shard", "1"]
    command = [sys.executable, "-m", "mmar_jobs", "generate", *job.flags(vllm.url), *few]
    chance = random.Random(7)
    for _ in range(NUM_CLIENT_KILLS):
        assert kill_somewhere(start(command), job.store, chance, at_least=1, longest_s=0.2), (
            "it ended before it was killed often enough: ask for more"
        )
    check_complete(job.draw(vllm.url, *few), world, num_draws=2)


def test_a_killed_server_costs_nothing_but_time(
    vllm: Vllm, ingested: Job, undisturbed: list[Candidate], world: TinyWorld, tmp_path: Path
) -> None:
    """Kill -9 amid two stages, and a restart: both end as if nothing had been."""
    drawing, answering = Track(), Track()
    with ThreadPoolExecutor(2) as pool:
        drawn = pool.submit(ingested.copy(tmp_path / "draw").draw, vllm.url, track=drawing)
        greedy = pool.submit(ingested.copy(tmp_path / "greedy").greedy, vllm.url, answering)
        wait_until(lambda: any((*drawing.done.values(), *answering.done.values())), timeout_s=120)
        vllm.kill()
        ended = [drawn.done(), greedy.done()]
        vllm.start()
        assert [False, False] == ended
        check_complete(drawn.result(timeout=600), world)
        assert undisturbed == greedy.result(timeout=600)
