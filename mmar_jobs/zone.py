"""From graded candidates of a question to training examples: its rate, its zone, which traces stay.

Not here: parsing and grading (grade.py), contamination and audio dependence, which filter decides
and passes in as a veto, and IO.

Which correct traces stay is a draw by hash, not a ranking. Keeping the shortest teaches a model to
stop listening early; keeping the most probable favours boilerplate and narrows every next round. A
hash of (seed, question, draw) is blind to length and content, does not depend on the order in which
candidates arrive, and its top 2 are part of its top 3.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final, NamedTuple, Self

from pydantic import Field, model_validator

from mmar_jobs.errors import DataError, GateError
from mmar_jobs.grade import grade, has_control_token, parse
from mmar_jobs.prompt import THINK_OPEN
from mmar_jobs.records import Candidate, Example, Grade, Question, Record, Zone

HARD_MAX_RATE: Final = 1 / 3
EASY_MIN_RATE: Final = 2 / 3


class Strategy(StrEnum):
    """How many of a question's correct candidates become examples."""

    TOP_K = "top_k"
    ALL = "all"


class DropReason(StrEnum):
    """Why a candidate did not become an example; the first that applies, in this order."""

    ERROR = "error"
    TRUNCATED = "truncated"
    UNPARSED = "unparsed"
    WRONG = "wrong"
    CONTAMINATED = "contaminated"  # the question shares its source with the benchmark
    SOLVED_MUTED = "solved_muted"  # the question is answered as well without its audio
    UNDECIDED = "undecided"  # correct, but too few valid attempts to trust the rate
    ZONE_WEIGHT_ZERO = "zone_weight_zero"
    CONTROL_TOKEN = "control_token"  # noqa: S105 - it says one that only prompts hold
    NO_THINKING = "no_thinking"  # correct, but it would teach to answer without reasoning
    NOT_CHOSEN = "not_chosen"  # correct, but beyond the k that stay
    MERGED = "merged"  # chosen, and word for word another chosen one, whose weight grows instead
    FLAT_GROUP = "flat_group"  # for a policy gradient: all candidates of its question earn the same


class SelectionRule(Record):
    """What decides which candidates become examples.

    Zones by rate of correct among valid attempts: UNDECIDED below `min_valid` attempts, UNSOLVED at
    0, HARD up to and including `hard_max_rate`, EASY from `easy_min_rate` on, MASTERED at 1, MEDIUM
    between. A zone without an entry in `zone_weights` weighs 1; weight 0 leaves the zone out.
    `think_open_in_prompt` says that the chat template opens the thinking, so completions do not.
    """

    strategy: Strategy = Strategy.TOP_K
    top_k: Annotated[int, Field(ge=1)] = 3
    min_valid: Annotated[int, Field(ge=1)] = 4
    hard_max_rate: Annotated[float, Field(gt=0, lt=1)] = HARD_MAX_RATE
    easy_min_rate: Annotated[float, Field(gt=0, lt=1)] = EASY_MIN_RATE
    think_open_in_prompt: bool = False
    zone_weights: dict[Zone, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        default_factory=dict
    )
    seed: int = 0

    @model_validator(mode="after")
    def _check_borders(self) -> Self:
        if self.hard_max_rate >= self.easy_min_rate:
            raise ValueError(
                f"hard_max_rate {self.hard_max_rate} is not below "
                f"easy_min_rate {self.easy_min_rate}"
            )
        return self


class Rate(NamedTuple):
    """Correct and valid attempts of one question."""

    num_correct: int
    num_valid: int

    @property
    def value(self) -> float:
        """Fraction correct; 0 where nothing is valid."""
        return self.num_correct / self.num_valid if self.num_valid else 0.0


@dataclass(frozen=True, slots=True)
class Selection:
    """What became of one question's candidates: every candidate is an example or has a reason."""

    examples: tuple[Example, ...]
    drops: Mapping[DropReason, int]
    grades: Mapping[Grade, int]
    zone: Zone
    rate: Rate
    choosable_tokens: tuple[int, ...] = ()  # lengths of the traces that could be chosen
    chosen_tokens: tuple[int, ...] = ()  # lengths of those that were, before equal ones are merged
    rewards: tuple[float, ...] = ()  # of all that a policy gradient can learn from


_REASON_BY_GRADE: Final = {
    Grade.ERROR: DropReason.ERROR,
    Grade.TRUNCATED: DropReason.TRUNCATED,
    Grade.UNPARSED: DropReason.UNPARSED,
    Grade.WRONG: DropReason.WRONG,
}


def rate(grades: Iterable[Grade]) -> Rate:
    """Count correct among valid attempts; errors, cut-off and unparsed attempts are not valid."""
    counts = Counter(grades)
    return Rate(counts[Grade.CORRECT], counts[Grade.CORRECT] + counts[Grade.WRONG])


def zone_of(
    num_correct: int,
    num_valid: int,
    *,
    min_valid: int,
    hard_max_rate: float = HARD_MAX_RATE,
    easy_min_rate: float = EASY_MIN_RATE,
) -> Zone:
    """Zone of a question by its rate, whatever the number of attempts once it is `min_valid`.

    ValueError unless 0 <= num_correct <= num_valid and min_valid >= 1.
    """
    if not 0 <= num_correct <= num_valid or min_valid < 1:
        raise ValueError(f"{num_correct} correct of {num_valid} valid, at least {min_valid}")
    if num_valid < min_valid:
        return Zone.UNDECIDED
    if num_correct == 0:
        return Zone.UNSOLVED
    if num_correct == num_valid:
        return Zone.MASTERED
    # Division rounds correctly, so 5/15 and 1/3 are the same float and the borders are exact.
    value = num_correct / num_valid
    if value <= hard_max_rate:
        return Zone.HARD
    return Zone.EASY if value >= easy_min_rate else Zone.MEDIUM


def select(candidates: Sequence[Candidate], rule: SelectionRule) -> list[Candidate]:
    """Choose by hash which of one question's candidates stay, in order of their draws."""
    if rule.strategy is Strategy.ALL or len(candidates) <= rule.top_k:
        return sorted(candidates, key=_draw)
    chosen = sorted(candidates, key=lambda candidate: _lot(candidate, rule.seed))[: rule.top_k]
    return sorted(chosen, key=_draw)


def examples_of(
    question: Question,
    candidates: Sequence[Candidate],
    rule: SelectionRule,
    *,
    veto: DropReason | None = None,
) -> Selection:
    """Turn one question's candidates into examples and count why the others were dropped.

    `veto` drops what would have been examples for a reason found elsewhere. DataError for a draw
    that occurs twice; GateError for candidates of several prompts or models.
    """
    candidates = sorted(candidates, key=_draw)
    _check_together(question, candidates)
    grades = [grade(candidate, question) for candidate in candidates]
    question_rate = rate(grades)
    zone = zone_of(
        *question_rate,
        min_valid=rule.min_valid,
        hard_max_rate=rule.hard_max_rate,
        easy_min_rate=rule.easy_min_rate,
    )
    weight = rule.zone_weights.get(zone, 1.0)
    drops = Counter(_REASON_BY_GRADE[g] for g in grades if g is not Grade.CORRECT)
    correct = [c for c, g in zip(candidates, grades, strict=True) if g is Grade.CORRECT]
    reason = veto or _zone_reason(zone, weight)
    if reason:
        drops[reason] += len(correct)
        pool, chosen = [], []
    else:
        pool = _worth_learning(question, correct, drops, tag_in_prompt=rule.think_open_in_prompt)
        chosen = select(pool, rule)
        drops[DropReason.NOT_CHOSEN] += len(pool) - len(chosen)
    merged = _merge(chosen)
    drops[DropReason.MERGED] += len(chosen) - len(merged)
    return Selection(
        examples=tuple(
            _example(
                question, candidate, weight=weight * count, zone=zone, value=question_rate.value
            )
            for candidate, count in merged
        ),
        drops=+drops,
        grades=Counter(grades),
        zone=zone,
        rate=question_rate,
        choosable_tokens=tuple(candidate.num_tokens for candidate in pool),
        chosen_tokens=tuple(candidate.num_tokens for candidate in chosen),
    )


def _example(
    question: Question, candidate: Candidate, *, weight: float, zone: Zone, value: float
) -> Example:
    return Example(
        question_id=question.id,
        draw=candidate.draw,
        completion=candidate.completion,
        weight=weight,
        zone=zone,
        rate=value,
        num_tokens=candidate.num_tokens,
        audio_sha256=question.audio_sha256,
        prompt_hash=candidate.prompt_hash,
        model_hash=candidate.model_hash,
    )


def _draw(candidate: Candidate) -> int:
    return candidate.draw


def _lot(candidate: Candidate, seed: int) -> bytes:
    key = f"{seed}\n{candidate.draw}\n{candidate.question_id}"
    return hashlib.blake2b(key.encode(), digest_size=16).digest()


def _zone_reason(zone: Zone, weight: float) -> DropReason | None:
    if zone is Zone.UNDECIDED:
        return DropReason.UNDECIDED
    return None if weight else DropReason.ZONE_WEIGHT_ZERO


def _worth_learning(
    question: Question,
    correct: Sequence[Candidate],
    drops: Counter[DropReason],
    *,
    tag_in_prompt: bool,
) -> list[Candidate]:
    """Leave out malformed completions, counting them in `drops`; they still count for the rate.

    Malformed is one with control tokens, one without thinking, and one whose opening tag lacks, or
    stands in the prompt already.
    """
    kept: list[Candidate] = []
    for candidate in correct:
        completion = candidate.completion.strip()
        is_open_once = completion.startswith(THINK_OPEN) != tag_in_prompt
        thinking = parse(completion, candidate.finish, question.choices).thinking
        if has_control_token(completion):
            drops[DropReason.CONTROL_TOKEN] += 1
        elif not (is_open_once and thinking):
            drops[DropReason.NO_THINKING] += 1
        else:
            kept.append(candidate)
    return kept


def _merge(chosen: Sequence[Candidate]) -> list[tuple[Candidate, int]]:
    """Each different completion once, with how often it was chosen.

    Leaving repeats out instead would flatten the distribution: a trace that comes up in nine of ten
    right draws would teach no more than the one lucky guess beside it.
    """
    counts = Counter(candidate.completion.strip() for candidate in chosen)
    first: dict[str, Candidate] = {}
    for candidate in chosen:
        first.setdefault(candidate.completion.strip(), candidate)
    return [(candidate, counts[completion]) for completion, candidate in first.items()]


def _check_together(question: Question, candidates: Sequence[Candidate]) -> None:
    if len({candidate.draw for candidate in candidates}) != len(candidates):
        raise DataError(
            f"question {question.id} has two candidates of the same draw: generate it again"
        )
    if len({(candidate.prompt_hash, candidate.model_hash) for candidate in candidates}) > 1:
        raise GateError(
            f"the candidates of question {question.id} come from different prompts or models: "
            "generate them again with one of each"
        )
