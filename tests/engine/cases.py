"""Questions, samplings and little patience for the tests of engines."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from mmar_jobs.audio import Clip, decode
from mmar_jobs.engine import Completion, Request, Sampling
from mmar_jobs.engine.link import Patience
from mmar_jobs.engine.server import ServerEngine
from tests.fakes import make_question, make_request, sound_bytes, tone

GREEDY = Sampling(
    temperature=0, top_p=1, top_k=0, repetition_penalty=1, max_tokens=12, seed=0, logprobs=True
)
DRAWN = replace(GREEDY, temperature=0.9, top_p=0.95, seed=3)
QUICK = Patience(outage_s=20, stall_s=0.6, poll_s=0.05, first_pause_s=0.02, longest_pause_s=0.1)
# Opens an engine over some servers.
Connect = Callable[..., ServerEngine]


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


def ask(engine: Any, asked: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
    """Answer without listening to progress."""
    found: list[list[Completion]] = engine.answer(asked, sampling, lambda _: None)
    return found
