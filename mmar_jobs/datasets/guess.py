"""How far one gets without hearing: guessers that see only the text of the choices; pure.

Not here: models that listen. A guesser well above chance names a flaw of the data, which a model
would learn in place of hearing.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from mmar_jobs.records import Question, canonical

_NUMBER: Final = re.compile(r"\d+(?:\.\d+)?")


class Guess(NamedTuple):
    """One guesser on the questions that it can answer, beside what chance would give."""

    num_questions: int
    accuracy: float
    chance: float


def guess_all(questions: Sequence[Question]) -> dict[str, Guess]:
    """Each guesser's accuracy.

    `commonest` picks the choice that is most often right in the other half of the questions.
    """
    halves = [Counter(canonical(q.answer or "") for q in questions[i::2]) for i in (0, 1)]
    other_half = {question.id: halves[1 - i % 2] for i, question in enumerate(questions)}
    guessers: dict[str, Callable[[Question], str | None]] = {
        "first": lambda question: question.choices[0],
        "last": lambda question: question.choices[-1],
        "longest": lambda question: max(question.choices, key=len),
        "shortest": lambda question: min(question.choices, key=len),
        "smallest": lambda question: _ranked(question, 0.0),
        "median": lambda question: _ranked(question, 0.5),
        "largest": lambda question: _ranked(question, 1.0),
        "commonest": lambda question: _commonest(question, other_half[question.id]),
    }
    return {name: found for name, guess in guessers.items() if (found := _judge(questions, guess))}


def _judge(questions: Sequence[Question], guess: Callable[[Question], str | None]) -> Guess | None:
    answered = [(question, choice) for question in questions if (choice := guess(question))]
    if not answered:
        return None
    num_right = sum(question.answer == choice for question, choice in answered)
    chance = sum(1 / len(question.choices) for question, _ in answered)
    return Guess(len(answered), num_right / len(answered), chance / len(answered))


def _ranked(question: Question, rank: float) -> str | None:
    """The choice at a rank of size, from 0 to 1, where all choices are numbers."""
    numbers = [(_NUMBER.search(choice), choice) for choice in question.choices]
    if not all(found for found, _ in numbers):
        return None
    ordered = sorted((float(found.group()), choice) for found, choice in numbers if found)
    return ordered[round(rank * (len(ordered) - 1))][1]


def _commonest(question: Question, right: Counter[str]) -> str:
    return max(question.choices, key=lambda choice: right[canonical(choice)])
