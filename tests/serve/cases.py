"""Questions for the real vLLM and the engine in process alike."""

from typing import Any

from mmar_jobs.audio import decode
from mmar_jobs.engine import Completion, Request, Sampling
from tests.fakes import make_question, make_request, sound_bytes, tone

GREEDY = Sampling(
    temperature=0, top_p=1, top_k=0, repetition_penalty=1, max_tokens=64, seed=0, logprobs=True
)
DRAWN = Sampling(
    temperature=0.9, top_p=0.95, top_k=0, repetition_penalty=1, max_tokens=64, seed=3, logprobs=True
)


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


def ask(engine: Any, asked: list[Request], sampling: Sampling) -> list[list[Completion]]:
    """Answer without listening to progress."""
    found: list[list[Completion]] = engine.answer(asked, sampling, lambda _: None)
    return found
