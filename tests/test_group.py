"""Tests of advantages: what a group teaches, and when it teaches nothing."""

import statistics
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmar_jobs.drawn_tokens import pack_tokens
from mmar_jobs.errors import GateError
from mmar_jobs.group import GroupRule, advantages, with_advantages
from mmar_jobs.records import Candidate, Finish, PolicyExample
from mmar_jobs.zone import DropReason, Selection, SelectionRule, examples_of
from tests.fakes import make_candidate, make_question

QUESTION = make_question()
RULE = GroupRule(
    weights={"correct": 1.0},
    divides_by_std=False,
    keeps_examples=False,
    max_tokens=100,
    think_open_in_prompt=False,
)
DRAWN = pack_tokens(range(12), [-0.25] * 12)
REWARDS = st.lists(st.sampled_from([0.0, 0.1, 1.0, 1.1]), min_size=1, max_size=16)


def candidates(*answers: str | None, finish: Finish = Finish.STOP) -> list[Candidate]:
    """One candidate an answer, all with their tokens; None is an error of the engine."""
    return [
        make_candidate(QUESTION, draw, answer, drawn_tokens=DRAWN, finish=finish)
        if answer
        else make_candidate(QUESTION, draw, completion="", finish=Finish.ERROR, num_tokens=0)
        for draw, answer in enumerate(answers)
    ]


def learned(
    found: list[Candidate], rule: GroupRule = RULE, veto: DropReason | None = None
) -> Selection:
    """What becomes of one question's candidates."""
    plain = examples_of(QUESTION, found, SelectionRule(top_k=1, min_valid=1), veto=veto)
    return with_advantages(QUESTION, found, plain, rule, veto=veto)


@given(REWARDS, st.booleans())
def test_advantages_sum_to_zero_and_keep_the_order(rewards: list[float], scaled: bool) -> None:
    """A group pushes as much as it pulls, and a higher reward never gets a lower advantage."""
    found = advantages(rewards, divides_by_std=scaled)
    assert sum(found) == pytest.approx(0, abs=1e-9)
    pairs = sorted(zip(rewards, found, strict=True))
    assert [one for _, one in pairs] == sorted(found)


def test_scaling_divides_by_the_deviation() -> None:
    """As in GRPO's paper; without it an advantage stays a difference of rewards, as in Dr. GRPO."""
    rewards = [1.0, 0.0, 0.0, 0.0]
    plain = advantages(rewards, divides_by_std=False)
    scaled = advantages(rewards, divides_by_std=True)
    assert [0.75, -0.25, -0.25, -0.25] == plain
    deviation = statistics.stdev(rewards)
    assert scaled == pytest.approx([one / deviation for one in plain], rel=1e-3)


@pytest.mark.parametrize("answers", [("one",) * 4, ("two", "three", "two"), ("one",)])
def test_flat_group_is_dropped_and_counted(answers: tuple[str, ...]) -> None:
    """All right, all wrong, or one alone: no advantage, no example, one reason."""
    found = learned(candidates(*answers))
    assert () == found.examples
    assert {DropReason.FLAT_GROUP: len(answers)} == found.drops


def test_every_candidate_of_a_mixed_group_is_learned() -> None:
    """Right ones get a positive advantage, wrong ones a negative one, errors none."""
    found = learned(candidates("one", "two", None, "two"))
    rows = [(e.draw, e.advantage, e.weight) for e in found.examples if isinstance(e, PolicyExample)]
    third = 1 / 3
    assert [
        (0, pytest.approx(2 * third), 0),
        (1, pytest.approx(-third), 0),
        (3, pytest.approx(-third), 0),
    ] == rows
    assert {DropReason.ERROR: 1} == found.drops
    assert (1.0, 0.0, 0.0) == found.rewards


def test_control_tokens_are_no_part_of_a_group() -> None:
    """What says a token of prompts cannot be learned, so it moves nobody's advantage either."""
    odd = "<think>A <|audio_pad|> here.</think>one"
    beside = make_candidate(QUESTION, 9, completion=odd, drawn_tokens=DRAWN)
    found = learned([*candidates("one", "two"), beside], replace(RULE, keeps_examples=True))
    assert [0.5, -0.5] == [e.advantage for e in found.examples if isinstance(e, PolicyExample)]
    assert {DropReason.CONTROL_TOKEN: 1} == found.drops
    assert (1.0, 0.0) == found.rewards


def test_both_objectives_learn_a_candidate_once() -> None:
    """What plain fine-tuning chooses keeps its weight, also in a flat group."""
    both = replace(RULE, keeps_examples=True)
    mixed = learned(candidates("two", "one", "one"), both).examples
    assert 3 == len(mixed)
    assert [1.0] == [example.weight for example in mixed if example.weight]
    flat = learned(candidates("one", "one"), both)
    assert [(1.0, 0.0)] == [
        (e.weight, e.advantage) for e in flat.examples if isinstance(e, PolicyExample)
    ]
    assert {DropReason.FLAT_GROUP: 1} == flat.drops


def test_veto_leaves_a_question_out() -> None:
    """A question that is solved without sound teaches a policy nothing either."""
    found = learned(candidates("one", "two"), veto=DropReason.SOLVED_MUTED)
    assert () == found.examples
    assert {DropReason.SOLVED_MUTED: 2} == found.drops


def test_hearing_is_rewarded_by_question() -> None:
    """With the reward for hearing alone, a question solved when muted is flat."""
    hearing = replace(RULE, weights={"audio_dependence": 1.0})
    assert 2 == len(learned(candidates("one", "two"), hearing).examples)
    deaf = replace(hearing, solved_muted=frozenset({QUESTION.id}))
    assert () == learned(candidates("one", "two"), deaf).examples


def test_candidates_without_tokens_are_refused() -> None:
    """Those of an older version: one line says what to do."""
    found = [one.model_copy(update={"drawn_tokens": ""}) for one in candidates("one", "two")]
    with pytest.raises(GateError, match=r"tokens were not recorded.* generate again"):
        learned(found)


def test_tokens_of_another_completion_are_refused() -> None:
    """As many tokens as the completion has, or it is another's."""
    found = [
        one.model_copy(update={"drawn_tokens": pack_tokens([1], [-1.0])})
        for one in candidates("one", "two")
    ]
    with pytest.raises(GateError, match="1 tokens recorded, its completion has 12"):
        learned(found)
