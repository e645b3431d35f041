"""What a run's records say: did the model get better, where, and how the benchmark went.

Not here: reading artifacts (run_view.py) and wording of the page (page.html.j2); pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from mmar_jobs.grade import grade
from mmar_jobs.layout import BENCHMARK, HELDOUT
from mmar_jobs.lineage import BASE
from mmar_jobs.records import Grade, Question
from mmar_jobs.report.run_view import Answers, Iteration, ModelName, Run
from mmar_jobs.score import Score, score
from mmar_jobs.stats import holm, mcnemar
from mmar_jobs.verdict import Decision, PromotionRule, Verdict, judge
from mmar_jobs.zone import DropReason

_MOST: Final = 0.95

Tone = Literal["good", "bad", "open"]

DROP_TEXT: Final[Mapping[DropReason, str]] = {
    DropReason.ERROR: "the engine failed; an error is not an answer",
    DropReason.TRUNCATED: "cut off at the token limit",
    DropReason.UNPARSED: "names no single choice after its thinking",
    DropReason.WRONG: "names a wrong choice",
    DropReason.CONTAMINATED: "its question shares a source with the benchmark",
    DropReason.SOLVED_MUTED: "its question is answered as well without the sound",
    DropReason.UNDECIDED: "right, but too few valid attempts at its question",
    DropReason.ZONE_WEIGHT_ZERO: "right, but its question is mastered, or its zone left out",
    DropReason.CONTROL_TOKEN: "says a token that belongs into prompts only, such as a turn's start",
    DropReason.NO_THINKING: "right, but without any thinking",
    DropReason.MERGED: "right, and merged with an equal one, whose weight grew",
    DropReason.NOT_CHOSEN: "right, but beyond the number kept per question",
    DropReason.FLAT_GROUP: "earns what all candidates of its question earn",
}


@dataclass(frozen=True)
class CategoryRow:
    """Two models within one category; both p-values are two-sided McNemar."""

    category: str
    n: int
    before: float
    after: float
    p_value: float
    p_value_holm: float


@dataclass(frozen=True)
class Comparison:
    """Base and final model on the held-out questions; the last child where none was promoted."""

    before: ModelName
    after: ModelName
    is_promoted: bool
    alpha: float
    verdict: Verdict
    categories: Sequence[CategoryRow]
    before_answers: Answers
    after_answers: Answers
    before_grades: Mapping[str, Grade]
    after_grades: Mapping[str, Grade]
    muted_grades: Mapping[str, Grade]  # empty where not tried


@dataclass(frozen=True)
class Headline:
    """The answer to the one question that the page is opened for."""

    tone: Tone
    answer: str
    sentence: str
    control: str


@dataclass(frozen=True)
class BenchmarkScore:
    """The benchmark's score over those of its questions that have an answer."""

    score: Score
    num_questions: int
    chance: float


def compare(run: Run) -> Comparison | None:
    """Compare base and final model; None before the first verdict."""
    judged = [turn for turn in run.iterations if turn.verdict]
    if not judged or judged[0].number != 1 or HELDOUT not in run.splits:
        return None
    before = judged[0].parent
    assert before is not None, "a verdict names its parent"
    final = _final_model(judged)
    is_promoted = final.iteration != BASE
    after = final if is_promoted else judged[-1].child
    assert after is not None, "a verdict names its child"
    pair = [run.answers.get((model.hash, False)) for model in (before, after)]
    if pair[0] is None or pair[1] is None:
        return None
    questions = run.splits[HELDOUT]
    grades = [_grades(questions, answers) for answers in pair if answers]
    muted = run.answers.get((after.hash, True))
    alpha = _alpha(judged[-1])
    verdict = judge(
        questions,
        grades[0],
        child=grades[1],
        muted=_grades(questions, muted) if muted else None,
        rule=PromotionRule(alpha=alpha),
    )
    return Comparison(
        before=before,
        after=after,
        is_promoted=is_promoted,
        alpha=alpha,
        verdict=verdict,
        categories=_categories(questions, grades[0], grades[1]),
        before_answers=pair[0],
        after_answers=pair[1],
        before_grades=grades[0],
        after_grades=grades[1],
        muted_grades=_grades(questions, muted) if muted else {},
    )


def headline(run: Run, comparison: Comparison | None) -> Headline:
    """The verdict on the whole run in plain words."""
    if comparison is None:
        return Headline(
            "open", "Not known yet", "No iteration has been evaluated, so nothing was compared.", ""
        )
    seen = comparison.verdict
    control = _control(comparison)
    if not comparison.is_promoted:
        tried = sum(turn.verdict is not None for turn in run.iterations)
        which = "the only child" if tried == 1 else f"none of {tried} children"
        verb = "was not promoted" if tried == 1 else "was promoted"
        return Headline(
            "open" if run.missing else "bad",
            "Not so far" if run.missing else "No",
            f"{which.capitalize()} {verb}: the base model is still the best one. The last child "
            f"is right on {seen.child_accuracy:.1%} of {seen.n} held-out questions, the base on "
            f"{seen.parent_accuracy:.1%}.",
            control,
        )
    facts = (
        f"the final model is right on {seen.child_accuracy:.1%} of {seen.n} held-out questions, "
        f"the base on {seen.parent_accuracy:.1%}"
    )
    if seen.gain > 0 and seen.p_value < comparison.alpha:
        return Headline("good", "Yes", f"Asked the same, {facts}.", control)
    return Headline(
        "open", "Not shown", f"Each step was promoted, but over the whole run {facts}.", control
    )


def benchmark(run: Run) -> BenchmarkScore | None:
    """Score the predictions; None without predictions or without a known answer."""
    asked = [question for question in run.splits.get(BENCHMARK, ()) if question.answer is not None]
    if not run.predictions or not asked:
        return None
    ids = {question.id for question in asked}
    said = {row.id: row.answer_prediction for row in run.predictions if row.id in ids}
    return BenchmarkScore(
        score=score(said, asked),
        num_questions=len(run.splits[BENCHMARK]),
        chance=sum(1 / len(question.choices) for question in asked) / len(asked),
    )


def _final_model(judged: Sequence[Iteration]) -> ModelName:
    last = judged[-1]
    assert last.verdict, "judged iterations only"
    assert last.child, "a verdict names its child"
    assert last.parent, "a verdict names its parent"
    return last.child if last.verdict.decision is Decision.PROMOTE else last.parent


def _alpha(iteration: Iteration) -> float:
    assert iteration.verdict_artifact is not None, "judged iterations only"
    gate = iteration.verdict_artifact.manifest.recipe.get("gate", {})
    return float(gate.get("alpha", PromotionRule().alpha))


def _grades(questions: Sequence[Question], answers: Answers) -> dict[str, Grade]:
    return {
        question.id: grade(answers.by_id[question.id], question)
        for question in questions
        if question.id in answers.by_id
    }


def _control(comparison: Comparison) -> str:
    seen = comparison.verdict
    if seen.muted_accuracy is None or seen.muted_p_value is None:
        return "It was not tried without sound, so nothing shows that it listens."
    who = "The final model" if comparison.is_promoted else "The last child"
    muted = (
        f"{who} with its sound muted is right on {seen.muted_accuracy:.1%}; guessing gives "
        f"{seen.chance:.1%}"
    )
    given = [g for g in comparison.muted_grades.values() if g in (Grade.CORRECT, Grade.WRONG)]
    if given and len(given) < _MOST * len(comparison.muted_grades):
        # Silence counts as wrong: without this a broken control would look like a passed one.
        muted += (
            f". It then names a choice on only {len(given) / len(comparison.muted_grades):.1%} of "
            f"them, and is right on {given.count(Grade.CORRECT) / len(given):.1%} of these"
        )
    if seen.muted_p_value < comparison.alpha:
        return (
            f"{muted} (p = {seen.muted_p_value:.2g}): above chance, so part of its score needs no "
            "listening."
        )
    if seen.listening_p_value is None or seen.listening_p_value >= comparison.alpha:
        return f"{muted}. With sound it is not measurably better, so nothing shows that it listens."
    return f"{muted}: not above chance, so its score comes from listening."


def _categories(
    questions: Sequence[Question], before: Mapping[str, Grade], after: Mapping[str, Grade]
) -> list[CategoryRow]:
    members: dict[str, list[Question]] = {}
    for question in questions:
        members.setdefault(question.category or "no category", []).append(question)
    right = Grade.CORRECT
    pairs = {
        name: [(before[q.id] is right, after[q.id] is right) for q in members[name]]
        for name in sorted(members)
    }
    p_values = [
        mcnemar(pair.count((True, False)), pair.count((False, True))) for pair in pairs.values()
    ]
    return [
        CategoryRow(
            category=name,
            n=len(pair),
            before=sum(first for first, _ in pair) / len(pair),
            after=sum(second for _, second in pair) / len(pair),
            p_value=p_value,
            p_value_holm=adjusted,
        )
        for (name, pair), p_value, adjusted in zip(
            pairs.items(), p_values, holm(p_values), strict=True
        )
    ]
