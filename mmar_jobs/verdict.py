"""The gate: is the child measurably better than its parent on the same held-out questions.

Not here: who answered the questions and how (stages/evaluate.py), the statistics (stats.py), and
what follows from a verdict (loop.py).
"""

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from itertools import takewhile
from typing import Annotated, Final, Literal

from pydantic import Field

from mmar_jobs.errors import GateError
from mmar_jobs.records import Grade, Question, Record
from mmar_jobs.stats import (
    NUM_RESAMPLES,
    above_chance,
    bootstrap_gain,
    holm,
    mcnemar,
    mcnemar_greater,
    minimum_detectable_gain,
    wilson_interval,
)

Fraction = Annotated[float, Field(ge=0, le=1)]

_ANSWERED: Final = (Grade.CORRECT, Grade.WRONG)


class Decision(StrEnum):
    """What happens next; PROMOTE makes the child the next parent."""

    PROMOTE = "promote"
    KEEP_PARENT = "keep_parent"
    STOP = "stop"


class PromotionRule(Record):
    """What a child must show.

    A gain above `min_gain` (a fraction) with a two-sided McNemar p-value below `alpha`; no category
    in which it is worse with a Holm-adjusted one-sided p-value below `regression_alpha`; and more
    right answers with its audio than without, one-sided p-value below `alpha`. After `patience`
    iterations in a row without a promotion the loop stops.
    """

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.05
    min_gain: Annotated[float, Field(ge=0, le=1)] = 0.0
    regression_alpha: Annotated[float, Field(ge=0, le=1)] = 0.05
    patience: Annotated[int, Field(ge=1)] = 2
    num_resamples: Annotated[int, Field(ge=100)] = NUM_RESAMPLES
    seed: int = 0


class CategoryVerdict(Record):
    """Parent and child within one category; `p_value` asks whether the child is worse there."""

    category: str
    n: int
    parent_accuracy: Fraction
    child_accuracy: Fraction
    p_value: Fraction
    p_value_holm: Fraction
    regressed: bool


class Verdict(Record):
    """A decision with all its numbers; accuracies are fractions of all n questions.

    `b` counts questions that only the parent got right, `c` those that only the child did. `chance`
    is what guessing would score; `muted_*` are the child without its audio, None where not tried:
    `muted_p_value` is for being above chance, `listening_p_value` for the child being better than
    its muted self. `detectable_gain` is what n questions show with 80 % power; None: nothing.
    """

    decision: Decision
    next_parent: Literal["parent", "child"]
    reasons: tuple[str, ...]
    n: int
    parent_accuracy: Fraction
    parent_ci95: tuple[float, float]
    parent_answered: int
    child_accuracy: Fraction
    child_ci95: tuple[float, float]
    child_answered: int
    gain: float
    gain_ci95: tuple[float, float]
    b: int
    c: int
    p_value: Fraction
    detectable_gain: float | None
    chance: Fraction
    muted_accuracy: Fraction | None
    muted_p_value: Fraction | None
    listening_p_value: Fraction | None
    categories: tuple[CategoryVerdict, ...]
    regressed_categories: tuple[str, ...]


def judge(
    questions: Sequence[Question],
    parent: Mapping[str, Grade],
    *,
    child: Mapping[str, Grade],
    rule: PromotionRule,
    muted: Mapping[str, Grade] | None = None,
    previous: Sequence[Decision] = (),
) -> Verdict:
    """Compare two models by their grades per question id; `previous` decisions in order of time.

    Unparsed and truncated answers count as wrong. GateError where the grades do not cover exactly
    the questions, or hold engine errors: no comparison is better than a wrong one.
    """
    _check_paired(questions, {"parent": parent, "child": child, "muted child": muted})
    n = len(questions)
    b, c = _discordant(questions, parent, child)
    num_parent, num_child = _num_correct(questions, parent), _num_correct(questions, child)
    categories = _categories(questions, parent, child, rule)
    num_choices = [len(question.choices) for question in questions]
    draft = Verdict(
        decision=Decision.PROMOTE,
        next_parent="child",
        reasons=(),
        n=n,
        parent_accuracy=num_parent / n,
        parent_ci95=wilson_interval(num_parent, n),
        parent_answered=sum(parent[question.id] in _ANSWERED for question in questions),
        child_accuracy=num_child / n,
        child_ci95=wilson_interval(num_child, n),
        child_answered=sum(child[question.id] in _ANSWERED for question in questions),
        gain=(c - b) / n,
        gain_ci95=bootstrap_gain(b, c, n, seed=rule.seed, num_resamples=rule.num_resamples),
        b=b,
        c=c,
        p_value=mcnemar(b, c),
        detectable_gain=minimum_detectable_gain(n, (b + c) / n, alpha=rule.alpha),
        chance=sum(1 / num for num in num_choices) / n,
        muted_accuracy=None if muted is None else _num_correct(questions, muted) / n,
        muted_p_value=None
        if muted is None
        else above_chance(_num_correct(questions, muted), num_choices),
        listening_p_value=None
        if muted is None
        else mcnemar_greater(*_discordant(questions, muted, child)),
        categories=categories,
        regressed_categories=tuple(row.category for row in categories if row.regressed),
    )
    return _decided(draft, rule, previous)


def _decided(draft: Verdict, rule: PromotionRule, previous: Sequence[Decision]) -> Verdict:
    objections = [reason for find in _OBJECTIONS if (reason := find(draft, rule))]
    if not objections:
        return draft.model_copy(update={"reasons": (_summary(draft),)})
    reasons = [_summary(draft), *objections]
    refused = takewhile(lambda decision: decision is not Decision.PROMOTE, reversed(previous))
    num_refused = sum(1 for _ in refused) + 1
    decision = Decision.KEEP_PARENT
    if num_refused >= rule.patience:
        decision = Decision.STOP
        reasons.append(
            f"{num_refused} iterations in a row without a promotion (patience {rule.patience}): "
            "more of the same is not expected to help"
        )
    return draft.model_copy(
        update={"decision": decision, "next_parent": "parent", "reasons": tuple(reasons)}
    )


def _summary(draft: Verdict) -> str:
    low, high = draft.gain_ci95
    return (
        f"on {draft.n} questions the child is right on {draft.child_accuracy:.1%}, the parent on "
        f"{draft.parent_accuracy:.1%}: {_points(draft.gain)} points ({_points(low)} to "
        f"{_points(high)}), p = {draft.p_value:.2g}"
    )


def _not_better(draft: Verdict, rule: PromotionRule) -> str | None:
    if draft.gain > rule.min_gain:
        return None
    limit = "nothing" if rule.min_gain == 0 else f"{_points(rule.min_gain)} points"
    return f"the child gains {_points(draft.gain)} points and must gain more than {limit}"


def _by_luck(draft: Verdict, rule: PromotionRule) -> str | None:
    if draft.p_value < rule.alpha or draft.gain <= 0:
        return None
    needed = draft.detectable_gain
    shows = "can show no gain here" if needed is None else f"show one from {_points(needed)} points"
    return (
        f"the gain may be luck (p = {draft.p_value:.2g}, must be below {rule.alpha:g}): "
        f"{draft.n} questions {shows}"
    )


def _regressed(draft: Verdict, _: PromotionRule) -> str | None:
    worse = [row for row in draft.categories if row.regressed]
    if not worse:
        return None
    return "the child is worse in " + ", ".join(
        f"{row.category or 'questions without a category'} ({row.parent_accuracy:.1%} to "
        f"{row.child_accuracy:.1%} on {row.n} questions, p = {row.p_value_holm:.2g})"
        for row in worse
    )


def _deaf(draft: Verdict, rule: PromotionRule) -> str | None:
    if draft.listening_p_value is None or draft.listening_p_value < rule.alpha:
        return None
    return (
        f"the child is deaf: {draft.child_accuracy:.1%} right with its audio, "
        f"{draft.muted_accuracy:.1%} without (p = {draft.listening_p_value:.2g})"
    )


_OBJECTIONS: Final[tuple[Callable[[Verdict, PromotionRule], str | None], ...]] = (
    _not_better,
    _by_luck,
    _regressed,
    _deaf,
)


def _points(fraction: float) -> str:
    return f"{100 * fraction:+.1f}"


def _num_correct(questions: Sequence[Question], grades: Mapping[str, Grade]) -> int:
    return sum(grades[question.id] is Grade.CORRECT for question in questions)


def _discordant(
    questions: Sequence[Question], first: Mapping[str, Grade], second: Mapping[str, Grade]
) -> tuple[int, int]:
    """Count questions that only `first` got right, and those that only `second` did."""
    pairs = [
        (first[question.id] is Grade.CORRECT, second[question.id] is Grade.CORRECT)
        for question in questions
    ]
    return pairs.count((True, False)), pairs.count((False, True))


def _categories(
    questions: Sequence[Question],
    parent: Mapping[str, Grade],
    child: Mapping[str, Grade],
    rule: PromotionRule,
) -> tuple[CategoryVerdict, ...]:
    members: dict[str, list[Question]] = {}
    for question in questions:
        members.setdefault(question.category, []).append(question)
    names = sorted(members)
    p_values = []
    for name in names:
        b, c = _discordant(members[name], parent, child)
        p_values.append(mcnemar_greater(c, b))
    return tuple(
        CategoryVerdict(
            category=name,
            n=len(members[name]),
            parent_accuracy=_num_correct(members[name], parent) / len(members[name]),
            child_accuracy=_num_correct(members[name], child) / len(members[name]),
            p_value=p_value,
            p_value_holm=adjusted,
            regressed=adjusted < rule.regression_alpha,
        )
        for name, p_value, adjusted in zip(names, p_values, holm(p_values), strict=True)
    )


def _check_paired(
    questions: Sequence[Question], grades_by_model: Mapping[str, Mapping[str, Grade] | None]
) -> None:
    ids = {question.id for question in questions}
    if not ids or len(ids) != len(questions):
        raise GateError(
            f"the gate needs held-out questions with an id each, got {len(questions)} with "
            f"{len(ids)} ids: check the held-out split"
        )
    for model, grades in grades_by_model.items():
        if grades is None:
            continue
        odd = sorted(ids ^ grades.keys())
        if odd:
            raise GateError(
                f"the {model} was not graded on the same questions: {len(odd)} differ, first "
                f"{odd[0]}; evaluate it again on the held-out split"
            )
        num_errors = sum(grade is Grade.ERROR for grade in grades.values())
        if num_errors:
            raise GateError(
                f"{num_errors} of {len(grades)} answers of the {model} are engine errors, which "
                "are not wrong answers: evaluate it again"
            )
