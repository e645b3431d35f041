"""Engines answer prompts; every engine gives the same records and proves which model it serves.

Not here: what is asked and what becomes of answers (stages/).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from mmar_jobs.audio import Clip
from mmar_jobs.identity import Canary, ModelIdentity
from mmar_jobs.prompt import Prompt
from mmar_jobs.records import Finish


@dataclass(frozen=True, slots=True)
class Request:
    """One question to answer once per draw; siblings share prompt and sound."""

    question_id: str
    prompt: Prompt
    clip: Clip
    draws: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are drawn; temperature 0 is greedy."""

    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    max_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Completion:
    """What one draw gave; `logprob_sum` in nats, by the softmax before any warping."""

    text: str
    finish: Finish
    num_tokens: int
    logprob_sum: float
    audio_tokens: int
    error: str = ""


class Engine(Protocol):
    """The seam to whatever runs the model."""

    @property
    def identity(self) -> ModelIdentity:
        """Digests of the base and adapter that this engine serves."""
        ...

    @property
    def prompt_opens_thinking(self) -> bool:
        """Whether the chat template ends a prompt with the opening tag, so completions lack it."""
        ...

    def canary(self) -> Canary:
        """The model's greedy answer to the fixed canary prompt."""
        ...

    def answer(
        self, requests: Sequence[Request], sampling: Sampling, on_answer: Callable[[int], None]
    ) -> list[list[Completion]]:
        """One completion per draw of each request, in order; `on_answer(num_done)` on progress.

        A completion depends on its request, the sampling and the engine's batch size, never on when
        or where it was made: a restarted stage gets the same bytes.
        """
        ...
