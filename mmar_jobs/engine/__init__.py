"""Engines answer prompts; every engine gives the same records and proves which model it serves.

Not here: what is asked and what becomes of answers (stages/).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from mmar_jobs.audio import Clip, canary_clip
from mmar_jobs.identity import Canary, ModelIdentity
from mmar_jobs.prompt import Prompt
from mmar_jobs.records import Finish

CANARY_PROMPT: Final = Prompt("Listen to the audio.", "What do you hear?")
# The tokens with which a model ends its turn.
STOP_TOKENS: Final = ("<|im_end|>", "<|endoftext|>")


@dataclass(frozen=True, slots=True)
class Request:
    """One question to answer once per draw; siblings share prompt and sound."""

    question_id: str
    prompt: Prompt
    clip: Clip
    draws: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RepetitionDetection:
    """Ends a completion in which a pattern of tokens repeats, in vLLM's words.

    Patterns of `min_pattern_size` to `max_pattern_size` tokens, `min_count` times in a row.
    """

    max_pattern_size: int
    min_pattern_size: int
    min_count: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are drawn; temperature 0 is greedy.

    With `logprobs` every token comes with its log-probability, from which a policy gradient learns
    and by which a vote may be settled. They are most of what a server writes and the client reads.

    After `thinking_token_budget` tokens of thinking, where that is set, its end is forced. A server
    does that and the detection of repetitions; the engine in process refuses them.
    """

    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    max_tokens: int
    seed: int
    logprobs: bool = False
    thinking_token_budget: int | None = None
    repetition_detection: RepetitionDetection | None = None


CANARY_REQUEST: Final = Request("canary", CANARY_PROMPT, canary_clip(), (0,))
CANARY_SAMPLING: Final = Sampling(
    temperature=0, top_p=1, top_k=0, repetition_penalty=1, max_tokens=8, seed=0, logprobs=True
)


@dataclass(frozen=True, slots=True)
class Completion:
    """What one draw gave: its tokens, the one that ended it included, which the text leaves out.

    `logprobs` in nats, one a token, by the softmax before any warping; none where the sampling asks
    for none.
    """

    text: str
    finish: Finish
    token_ids: Sequence[int]
    logprobs: Sequence[float]
    audio_tokens: int
    error: str = ""

    @property
    def num_tokens(self) -> int:
        """All that were drawn."""
        return len(self.token_ids)

    @property
    def logprob_sum(self) -> float | None:
        """Of the whole completion, nats; None where its tokens came without."""
        return sum(self.logprobs, 0.0) if self.logprobs else None


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


class Listener(Protocol):
    """Who asks a streaming engine; both methods are called in its own thread and may raise."""

    def answered(self, request: Request, completions: Sequence[Completion]) -> Request | None:
        """Take one completion a draw; the request that is returned, if any, is asked next."""
        ...

    def waiting(self) -> None:
        """About once a second, whether or not anything was answered."""
        ...


@runtime_checkable
class StreamingEngine(Engine, Protocol):
    """An engine that keeps many requests under way and answers them in the order of their ends.

    What it answers does not depend on what it is asked together, up to rounding.
    """

    def stream(self, requests: Iterable[Request], sampling: Sampling, listener: Listener) -> None:
        """Answer all requests; each is taken from `requests` only when its turn has come."""
        ...


def answer_all(
    engine: StreamingEngine,
    requests: Sequence[Request],
    sampling: Sampling,
    on_answer: Callable[[int], None],
) -> list[list[Completion]]:
    """Engine.answer by a stream."""
    collector = _Collector(requests, on_answer)
    engine.stream(requests, sampling, collector)
    return [list(collector.found[id(request)]) for request in requests]


class _Collector:
    """A Listener that gathers a stream's answers."""

    def __init__(self, requests: Sequence[Request], on_answer: Callable[[int], None]) -> None:
        self.found: dict[int, Sequence[Completion]] = {id(request): () for request in requests}
        self._on_answer = on_answer

    def answered(self, request: Request, completions: Sequence[Completion]) -> None:
        """See Listener."""
        self.found[id(request)] = completions
        self._on_answer(len(completions))

    def waiting(self) -> None:
        """See Listener."""
        self._on_answer(0)
