"""Tests of the gate: who is promoted, who is not, and whether the reasons say why."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmar_jobs.errors import GateError
from mmar_jobs.records import Grade, Question
from mmar_jobs.verdict import Decision, PromotionRule, Verdict, judge

RULE = PromotionRule(num_resamples=500)
RIGHT, WRONG = Grade.CORRECT, Grade.WRONG


def questions_of(
    num: int, *, categories: Sequence[str] = ("sound",), num_choices: int = 4
) -> list[Question]:
    """Build questions that go through the categories in turn."""
    return [
        Question(
            id=f"q{i:04}",
            audio="a.wav",
            text="What?",
            choices=tuple(f"choice {k}" for k in range(num_choices)),
            answer="choice 0",
            category=categories[i % len(categories)],
        )
        for i in range(num)
    ]


def grades_of(questions: Sequence[Question], right: Sequence[bool]) -> dict[str, Grade]:
    """Grade question i as correct where right[i]."""
    return {
        question.id: RIGHT if correct else WRONG
        for question, correct in zip(questions, right, strict=True)
    }


def block(n: int, first: int, num: int) -> list[bool]:
    """Mark `num` of n questions as right, from `first` on."""
    return [first <= i < first + num for i in range(n)]


def verdict_of(n: int, parent: list[bool], child: list[bool], **options: object) -> Verdict:
    """Judge n questions of one category."""
    questions = questions_of(n)
    muted = options.pop("muted", None)
    return judge(
        questions,
        grades_of(questions, parent),
        child=grades_of(questions, child),
        muted=grades_of(questions, muted) if isinstance(muted, list) else None,
        rule=PromotionRule(num_resamples=500, **options),  # type: ignore[arg-type]
    )


def test_a_clearly_better_child_is_promoted() -> None:
    """All numbers of a promotion are the ones worked out by hand."""
    verdict = verdict_of(200, block(200, 0, 80), block(200, 0, 120), muted=block(200, 0, 50))
    assert Decision.PROMOTE is verdict.decision
    assert "child" == verdict.next_parent
    assert (200, 0, 40) == (verdict.n, verdict.b, verdict.c)
    assert (0.4, 0.6, 0.2) == (verdict.parent_accuracy, verdict.child_accuracy, verdict.gain)
    assert 2 / 2**40 == verdict.p_value
    assert (200, 200) == (verdict.parent_answered, verdict.child_answered)
    assert 0.25 == verdict.chance == verdict.muted_accuracy
    assert verdict.muted_p_value is not None
    assert verdict.muted_p_value > 0.4
    assert verdict.listening_p_value is not None
    assert verdict.listening_p_value < 1e-6
    assert verdict.gain_ci95[0] > 0.1
    assert () == verdict.regressed_categories
    assert (
        "on 200 questions the child is right on 60.0%, the parent on 40.0%: +20.0 points",
    ) == tuple(reason[:79] for reason in verdict.reasons)


def test_a_lucky_child_is_not_promoted() -> None:
    """A gain that chance explains keeps the parent and says what these questions could show."""
    verdict = verdict_of(100, block(100, 0, 50), block(100, 2, 51))
    assert Decision.KEEP_PARENT is verdict.decision
    assert "parent" == verdict.next_parent
    assert "the gain may be luck (p = 1, must be below 0.05): 100 questions" in verdict.reasons[1]
    assert verdict.detectable_gain is None
    assert verdict.reasons[1].endswith("can show no gain here")


def test_enough_questions_would_show_a_gain() -> None:
    """Where the design could have shown a larger gain the reason names it."""
    n = 400
    verdict = verdict_of(n, block(n, 0, 200), block(n, 40, 205))
    assert verdict.detectable_gain is not None
    assert f"show one from {100 * verdict.detectable_gain:+.1f} points" in verdict.reasons[1]


def test_a_worse_child_is_not_promoted() -> None:
    """Losing accuracy is said in points."""
    verdict = verdict_of(100, block(100, 0, 60), block(100, 0, 40))
    assert Decision.KEEP_PARENT is verdict.decision
    assert "the child gains -20.0 points and must gain more than nothing" == verdict.reasons[1]
    assert -0.2 == verdict.gain


def test_a_gain_must_exceed_the_minimum() -> None:
    """A real but small gain is refused where the rule asks for more."""
    verdict = verdict_of(400, block(400, 0, 100), block(400, 0, 112), min_gain=0.05)
    assert Decision.KEEP_PARENT is verdict.decision
    assert "the child gains +3.0 points and must gain more than +5.0 points" == verdict.reasons[1]


def test_a_deaf_child_is_not_promoted() -> None:
    """A child that is as good without its audio has learnt the text of the questions."""
    verdict = verdict_of(200, block(200, 0, 80), block(200, 0, 120), muted=block(200, 0, 118))
    assert Decision.KEEP_PARENT is verdict.decision
    assert (
        "the child is deaf: 60.0% right with its audio, 59.0% without (p = 0.25)"
        == verdict.reasons[1]
    )


def test_a_category_that_gets_worse_blocks_the_promotion() -> None:
    """A gain overall does not pay for a category that falls apart, which is named."""
    questions = questions_of(300, categories=("music", "sound", ""))
    parent = [question.category != "sound" and i < 150 for i, question in enumerate(questions)]
    child = [question.category != "music" for question in questions]
    verdict = judge(
        questions, grades_of(questions, parent), child=grades_of(questions, child), rule=RULE
    )
    assert Decision.KEEP_PARENT is verdict.decision
    assert ("music",) == verdict.regressed_categories
    assert ["", "music", "sound"] == [row.category for row in verdict.categories]
    assert (
        "the child is worse in music (50.0% to 0.0% on 100 questions, p = 2.7e-15)"
        == verdict.reasons[1]
    )
    allowed = judge(
        questions,
        grades_of(questions, parent),
        child=grades_of(questions, child),
        rule=PromotionRule(regression_alpha=0.0, num_resamples=500),
    )
    assert Decision.PROMOTE is allowed.decision


def test_unparsed_and_truncated_answers_count_as_wrong_and_are_told() -> None:
    """An accuracy is of all questions, answered or not."""
    questions = questions_of(4)
    parent = dict.fromkeys((question.id for question in questions), RIGHT)
    child = {**parent, "q0000": Grade.UNPARSED, "q0001": Grade.TRUNCATED}
    verdict = judge(questions, parent, child=child, rule=RULE)
    assert (4, 2, 0.5) == (verdict.parent_answered, verdict.child_answered, verdict.child_accuracy)
    assert (2, 0) == (verdict.b, verdict.c)


@pytest.mark.parametrize(
    ("previous", "decision"),
    [
        ((), Decision.KEEP_PARENT),
        ((Decision.PROMOTE,), Decision.KEEP_PARENT),
        ((Decision.KEEP_PARENT, Decision.PROMOTE), Decision.KEEP_PARENT),
        ((Decision.KEEP_PARENT,), Decision.STOP),
        ((Decision.PROMOTE, Decision.KEEP_PARENT), Decision.STOP),
        ((Decision.STOP,), Decision.STOP),
    ],
)
def test_the_loop_stops_when_patience_runs_out(
    previous: tuple[Decision, ...], decision: Decision
) -> None:
    """Refusals count in a row; a promotion starts the count again."""
    questions = questions_of(10)
    same = grades_of(questions, block(10, 0, 5))
    verdict = judge(questions, same, child=same, rule=RULE, previous=previous)
    assert decision is verdict.decision
    assert "parent" == verdict.next_parent
    stopped = "in a row without a promotion (patience 2)" in verdict.reasons[-1]
    assert stopped == (decision is Decision.STOP)


def test_a_promotion_after_refusals_still_counts() -> None:
    """Patience never turns a better child away."""
    questions = questions_of(100)
    verdict = judge(
        questions,
        grades_of(questions, block(100, 0, 20)),
        child=grades_of(questions, block(100, 0, 60)),
        rule=RULE,
        previous=[Decision.KEEP_PARENT] * 5,
    )
    assert Decision.PROMOTE is verdict.decision


def test_unpaired_grades_are_refused() -> None:
    """Parent, child and muted child must have answered exactly the held-out questions."""
    questions = questions_of(3)
    full = grades_of(questions, [True] * 3)
    part = {key: full[key] for key in list(full)[:2]}
    with pytest.raises(GateError, match="the child was not graded on the same questions: 1 differ"):
        judge(questions, full, child=part, rule=RULE)
    with pytest.raises(GateError, match=r"the parent was not graded .* first other"):
        judge(questions, {**full, "other": RIGHT}, child=full, rule=RULE)
    with pytest.raises(GateError, match="the muted child was not graded"):
        judge(questions, full, child=full, muted=part, rule=RULE)


def test_engine_errors_are_no_wrong_answers() -> None:
    """A server that failed on some questions makes no worse model."""
    questions = questions_of(3)
    full = grades_of(questions, [True] * 3)
    with pytest.raises(GateError, match="1 of 3 answers of the child are engine errors"):
        judge(questions, full, child={**full, "q0001": Grade.ERROR}, rule=RULE)


@pytest.mark.parametrize("num", [0, 2])
def test_questions_must_be_there_and_differ(num: int) -> None:
    """An empty or repeated held-out set gives no verdict."""
    questions = questions_of(1) * num
    with pytest.raises(GateError, match="needs held-out questions with an id each"):
        judge(questions, {}, child={}, rule=RULE)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_a_verdict_is_consistent_and_survives_json(outcomes: list[tuple[bool, bool, bool]]) -> None:
    """Whatever the outcomes, the numbers agree with each other and round-trip through JSON."""
    questions = questions_of(len(outcomes), categories=("a", "b"))
    parent, child, muted = (grades_of(questions, [row[k] for row in outcomes]) for k in range(3))
    verdict = judge(questions, parent, child=child, muted=muted, rule=RULE)
    assert verdict.gain == pytest.approx(verdict.child_accuracy - verdict.parent_accuracy)
    assert verdict.gain_ci95[0] <= verdict.gain <= verdict.gain_ci95[1]
    assert len(outcomes) == sum(row.n for row in verdict.categories)
    assert (verdict.next_parent == "child") == (verdict.decision is Decision.PROMOTE)
    if verdict.decision is Decision.PROMOTE:
        assert verdict.p_value < 0.05
        assert verdict.gain > 0
    assert verdict == Verdict.model_validate_json(verdict.model_dump_json())
    swapped = judge(questions, child, child=parent, muted=muted, rule=RULE)
    assert (verdict.b, verdict.c, verdict.p_value) == (swapped.c, swapped.b, swapped.p_value)


def test_equal_models_are_rarely_promoted() -> None:
    """Of children that only differ by luck at most alpha / 2 pass: the test has two sides."""
    rng = np.random.default_rng(5)
    questions = questions_of(200)
    promoted = 0
    for _ in range(400):
        parent = grades_of(questions, [bool(hit) for hit in rng.random(200) < 0.5])
        child = grades_of(questions, [bool(hit) for hit in rng.random(200) < 0.5])
        rule = PromotionRule(num_resamples=100)
        verdict = judge(questions, parent, child=child, rule=rule)
        promoted += verdict.decision is Decision.PROMOTE
    assert promoted / 400 < 0.05
