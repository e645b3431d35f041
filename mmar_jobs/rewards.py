"""What a candidate earns: a registry of pure functions over a question and one of its candidates.

Not here: what rewards are for (group.py), and their weights (recipes.py, one field for each).

A reward is for what the grader finds after the thinking, word for word: restating the choices,
naming a letter or answering inside the thinking earns nothing. What a judge says of the reasoning
(judge/candidates.py) counts for right answers alone.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mmar_jobs.errors import DataError
from mmar_jobs.grade import grade, parse
from mmar_jobs.prompt import THINK_OPEN
from mmar_jobs.records import Candidate, Finish, Grade, Question

_FREE_SHARE: Final = 0.8  # of the token limit; beyond it length costs (DAPO, arXiv 2503.14476)
_LOOP_TIMES: Final = 8
_LOOP_WORDS: Final = 64


def rated_id(candidate: Candidate) -> str:
    """Under which id a judge rates a candidate: its question, its draw, and what it said."""
    said = hashlib.sha256(candidate.completion.encode(errors="replace")).hexdigest()
    return f"{candidate.question_id}#{candidate.draw}#{said[:12]}"


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What earlier stages know beside question and candidate.

    `solved_muted`: the model answers this question right without its sound. `max_tokens` is the
    limit at which a completion was cut. `think_open_in_prompt`: the chat template opens the
    thinking, so completions do not. `rubric_scores`: what a judge gives the question's right
    candidates, 0 to 1, by rated_id; None where the question has no rubric.
    """

    solved_muted: bool
    max_tokens: int
    think_open_in_prompt: bool
    rubric_scores: Mapping[str, float] | None = None


Reward = Callable[[Question, Candidate, Circumstances], float]


def correct(question: Question, candidate: Candidate, known: Circumstances) -> float:
    """1 where exactly the right choice stands after the thinking."""
    del known
    return float(grade(candidate, question) is Grade.CORRECT)


def well_formed(question: Question, candidate: Candidate, known: Circumstances) -> float:
    """1 for some thinking between its two tags and one choice after it, right or not."""
    parsed = parse(candidate.completion, candidate.finish, question.choices)
    opens = candidate.completion.lstrip().startswith(THINK_OPEN)
    is_open_once = opens != known.think_open_in_prompt
    return float(is_open_once and bool(parsed.thinking) and parsed.answer is not None)


def not_overlong(question: Question, candidate: Candidate, known: Circumstances) -> float:
    """0 up to four fifths of the token limit, from there down to -1, which a cut one gets."""
    del question
    if candidate.finish is Finish.LENGTH:
        return -1.0
    free = _FREE_SHARE * known.max_tokens
    return -min(1.0, max(0.0, (candidate.num_tokens - free) / (known.max_tokens - free)))


def no_loop(question: Question, candidate: Candidate, known: Circumstances) -> float:
    """-1 where up to 64 words come eight times in a row."""
    del question, known
    words = candidate.completion.split()
    numbers: dict[str, int] = {}
    text_N = np.array([numbers.setdefault(word, len(numbers)) for word in words], np.int64)
    longest = min(_LOOP_WORDS, len(words) // _LOOP_TIMES)
    return -float(any(_repeats(text_N, size) for size in range(1, longest + 1)))


def _repeats(text_N: NDArray[np.int64], size: int) -> bool:
    """Whether `size` words stand _LOOP_TIMES times in a row somewhere."""
    changes = np.flatnonzero(text_N[size:] != text_N[:-size])
    edges = np.concatenate(([-1], changes, [len(text_N) - size]))
    return bool(np.diff(edges).max() - 1 >= size * (_LOOP_TIMES - 1))


def audio_dependent(question: Question, candidate: Candidate, known: Circumstances) -> float:
    """1 for a right answer to a question that the model gets wrong without its sound."""
    return 0.0 if known.solved_muted else correct(question, candidate, known)


def rubric(question: Question, candidate: Candidate, known: Circumstances) -> float:
    """What a judge gives the reasoning of a right answer; a wrong one earns nothing by it.

    DataError where a question has scores and this candidate has none.
    """
    if known.rubric_scores is None or not correct(question, candidate, known):
        return 0.0
    score = known.rubric_scores.get(rated_id(candidate))
    if score is None:
        raise DataError(
            f"question {question.id} draw {candidate.draw}: the rubric scores are of other "
            "candidates: write them by `mmar-jobs candidates` and have these rated"
        )
    return score


REWARDS: Final[Mapping[str, Reward]] = {
    "correct": correct,
    "format": well_formed,
    "length": not_overlong,
    "loop": no_loop,
    "audio_dependence": audio_dependent,
    "rubric": rubric,
}


def total_reward(
    question: Question, candidate: Candidate, known: Circumstances, weights: Mapping[str, float]
) -> float:
    """Sum of the rewards by their `weights`; what weighs nothing is not computed."""
    return sum(
        weight * REWARDS[name](question, candidate, known)
        for name, weight in weights.items()
        if weight
    )
