"""How one question is asked, and what its answers are: prompt, draws, checks, records.

Not here: which questions, and keeping the answers (answering.py, ahead.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mmar_jobs.audio import ClipReader, check_audio_tokens
from mmar_jobs.drawn_tokens import pack_tokens
from mmar_jobs.engine import Completion, Engine, Request, Sampling
from mmar_jobs.errors import GateError
from mmar_jobs.grade import grade, parse
from mmar_jobs.prompt import Prompt, render
from mmar_jobs.records import Candidate, Finish, Question
from mmar_jobs.zone import rate

_MAX_ERROR_SHARE: Final = 0.01


@dataclass(frozen=True)
class Asking:
    """How a list of questions is asked: prompt, draws, and whether the sound is muted.

    `blocks` are draw indices asked one after the other; with `top_k` set, a question whose fate is
    settled after a block is not asked again: enough correct answers among at least `min_valid`
    valid ones, or nothing but correct, or but wrong ones, after the second block. `keeps_tokens`:
    the records hold every token with its log-probability, for a policy gradient.
    """

    prompt_version: str
    sampling: Sampling
    blocks: tuple[tuple[int, ...], ...]
    questions_per_shard: int
    muted: bool = False
    top_k: int | None = None
    min_valid: int = 1
    keeps_tokens: bool = False

    def __post_init__(self) -> None:
        assert self.sampling.logprobs or not self.keeps_tokens, (
            "tokens are kept with their logprobs"
        )


@dataclass(frozen=True)
class Questioner:
    """Turns questions into an engine's requests, and its completions into candidates."""

    engine: Engine
    clips: ClipReader
    asking: Asking

    def is_settled(self, question: Question, candidates: Sequence[Candidate]) -> bool:
        """Whether the question's fate is known after these, so that it is not asked again."""
        if self.asking.top_k is None:
            return False
        grades = [grade(candidate, question) for candidate in candidates]
        num_correct, num_valid = rate(grades)
        if num_valid < self.asking.min_valid:
            return False
        is_mixed = self.asking.top_k <= num_correct < num_valid
        is_uniform = num_correct in (0, num_valid) and len(candidates) > len(self.asking.blocks[0])
        return is_mixed or is_uniform

    def request(self, question: Question, block: tuple[int, ...]) -> Request:
        """The request for some draws of a question."""
        clip = self.clips.read(question)
        prompt = render(question, self.asking.prompt_version)
        return Request(question.id, prompt, clip.muted() if self.asking.muted else clip, block)

    def records(
        self, question: Question, request: Request, completions: Sequence[Completion]
    ) -> list[Candidate]:
        """The answers to a request as candidates; GateError for what no answer can be."""
        if len(completions) != len(request.draws):
            raise GateError(
                f"question {question.id}: the engine gave {len(completions)} completions for "
                f"{len(request.draws)} draws: siblings were lost"
            )
        return [
            self._record(question, request.prompt, draw, completion)
            for draw, completion in zip(request.draws, completions, strict=True)
        ]

    def _record(
        self, question: Question, prompt: Prompt, draw: int, completion: Completion
    ) -> Candidate:
        parsed = parse(completion.text, completion.finish, question.choices)
        if completion.num_tokens > self.asking.sampling.max_tokens:
            raise GateError(
                f"question {question.id}: a completion of {completion.num_tokens} tokens, more "
                f"than --sampling.max-tokens {self.asking.sampling.max_tokens}: it was ignored"
            )
        if completion.finish is not Finish.ERROR:
            check_audio_tokens(
                completion.audio_tokens, duration_s=question.audio_s, question_id=question.id
            )
        return Candidate(
            question_id=question.id,
            draw=draw,
            completion=completion.text,
            thinking=parsed.thinking,
            answer=parsed.answer,
            finish=completion.finish,
            num_tokens=completion.num_tokens,
            logprob_sum=completion.logprob_sum,
            audio_tokens=completion.audio_tokens,
            prompt_hash=prompt.hash,
            model_hash=self.engine.identity.hash,
            seed=self.asking.sampling.seed,
            error=completion.error,
            drawn_tokens=pack_tokens(completion.token_ids, completion.logprobs)
            if self.asking.keeps_tokens
            else "",
        )


def check_errors(candidates: Sequence[Candidate]) -> None:
    """Raise GateError for more than a few errors, or for a question that met nothing but errors."""
    errors = [candidate for candidate in candidates if candidate.finish is Finish.ERROR]
    answered = {c.question_id for c in candidates if c.finish is not Finish.ERROR}
    lost = [candidate for candidate in errors if candidate.question_id not in answered]
    if not lost and len(errors) <= _MAX_ERROR_SHARE * len(candidates):
        return
    errors = lost or errors
    raise GateError(
        f"the engine failed on {len(errors)} of {len(candidates)} candidates, first question "
        f"{errors[0].question_id}: {errors[0].error or 'no message'}: an error is not an answer"
    )
