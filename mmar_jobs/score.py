"""Score predictions as the benchmark does and, beside it, strictly.

Not here: reading prediction files (submission.py) and the grade that training uses (grade.py),
which is the strict one.

The benchmark compares sets of words and is therefore blind to their order: "man bites dog" passes
for "dog bites man". Its script also skips records without an answer, so its denominator shrinks;
what it would print is `official_script_accuracy`, every other accuracy is of all questions.
Source: `string_match` of code/evaluation.py in github.com/ddlBoJack/MMAR.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Final

from pydantic import Field

from mmar_jobs.errors import DataError
from mmar_jobs.grade import parse_answer
from mmar_jobs.records import Question, Record
from mmar_jobs.stats import wilson_interval

_WORD: Final = re.compile(r"\w+")

Fraction = Annotated[float, Field(ge=0, le=1)]
Interval = tuple[float, float]


class Accuracy(Record):
    """Both accuracies of a group of questions, as fractions of all its `num_items`."""

    num_items: int
    num_answered: int
    official_accuracy: Fraction
    official_accuracy_ci95: Interval
    strict_accuracy: Fraction
    strict_accuracy_ci95: Interval


class Score(Accuracy):
    """Accuracies over all questions and by group.

    `num_unknown` predictions have an id that no question has and are ignored. `num_with_answer`
    questions have a prediction, be it empty: the official script's denominator, which gives
    `official_script_accuracy`, None where it is 0. `order_blind_ids` are questions of which the
    official matcher accepts a wrong choice; `num_official_only` predictions are right by the
    official matcher and wrong by the strict one.
    """

    num_unknown: int
    num_with_answer: int
    official_script_accuracy: Fraction | None
    num_order_blind: int
    order_blind_ids: tuple[str, ...]
    num_official_only: int
    by_modality: dict[str, Accuracy]
    by_category: dict[str, Accuracy]
    by_sub_category: dict[str, Accuracy]


class _Outcome(Record):
    answered: bool
    official: bool
    strict: bool


def official_correct(prediction: str, answer: str, choices: Sequence[str]) -> bool:
    r"""Whether the benchmark's matcher accepts `prediction` for `answer`.

    On sets of lower-cased `\w+` words: the prediction has all words of the answer, and no word that
    a wrong choice has and the answer lacks. An empty prediction is wrong.
    """
    said = _words(prediction)
    gold = _words(answer)
    forbidden = set().union(*(_words(choice) for choice in choices)) - gold
    return bool(said) and gold <= said and said.isdisjoint(forbidden)


def strict_correct(prediction: str, answer: str, choices: Sequence[str]) -> bool:
    """Whether `prediction` names exactly one choice, as grade.parse_answer reads it: the answer."""
    return parse_answer(prediction, choices) == answer


def order_blind_choices(question: Question) -> tuple[str, ...]:
    """Wrong choices of a question that the official matcher accepts."""
    answer = _gold(question)
    return tuple(
        choice
        for choice in question.choices
        if choice != answer and official_correct(choice, answer, question.choices)
    )


def score(predictions: Mapping[str, str], questions: Sequence[Question]) -> Score:
    """Score answers by question id; a question without a prediction counts as wrong.

    DataError where there are no questions, or one has no gold answer.
    """
    if not questions:
        raise DataError("there are no questions to score against: check the META file")
    outcomes = [_outcome(predictions.get(question.id, ""), question) for question in questions]
    num_with_answer = sum(question.id in predictions for question in questions)
    num_official = sum(outcome.official for outcome in outcomes)
    blind = tuple(question.id for question in questions if order_blind_choices(question))
    return Score(
        **_accuracy(outcomes).model_dump(),
        num_unknown=len(predictions.keys() - {question.id for question in questions}),
        num_with_answer=num_with_answer,
        official_script_accuracy=num_official / num_with_answer if num_with_answer else None,
        num_order_blind=len(blind),
        order_blind_ids=blind,
        num_official_only=sum(outcome.official and not outcome.strict for outcome in outcomes),
        by_modality=_by([question.modality for question in questions], outcomes),
        by_category=_by([question.category for question in questions], outcomes),
        by_sub_category=_by([question.sub_category for question in questions], outcomes),
    )


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))


def _gold(question: Question) -> str:
    if question.answer is None:
        raise DataError(f"question {question.id} has no answer to score against: add it to META")
    return question.answer


def _outcome(prediction: str, question: Question) -> _Outcome:
    answer = _gold(question)
    return _Outcome(
        answered=bool(prediction.strip()),
        official=official_correct(prediction, answer, question.choices),
        strict=strict_correct(prediction, answer, question.choices),
    )


def _accuracy(outcomes: Sequence[_Outcome]) -> Accuracy:
    num_items = len(outcomes)
    num_official = sum(outcome.official for outcome in outcomes)
    num_strict = sum(outcome.strict for outcome in outcomes)
    return Accuracy(
        num_items=num_items,
        num_answered=sum(outcome.answered for outcome in outcomes),
        official_accuracy=num_official / num_items,
        official_accuracy_ci95=wilson_interval(num_official, num_items),
        strict_accuracy=num_strict / num_items,
        strict_accuracy_ci95=wilson_interval(num_strict, num_items),
    )


def _by(groups: Sequence[str], outcomes: Sequence[_Outcome]) -> dict[str, Accuracy]:
    members: dict[str, list[_Outcome]] = {}
    for group, outcome in zip(groups, outcomes, strict=True):
        members.setdefault(group, []).append(outcome)
    return {group: _accuracy(members[group]) for group in sorted(members)}
