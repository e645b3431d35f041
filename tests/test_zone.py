"""Tests of rates, zones and the choice of training examples."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mmar_jobs.errors import DataError, GateError
from mmar_jobs.records import Candidate, Finish, Grade, Question, Zone
from mmar_jobs.zone import (
    DropReason,
    Rate,
    SelectionRule,
    Strategy,
    examples_of,
    rate,
    select,
    zone_of,
)

QUESTION = Question(
    id="q", audio="q.wav", text="Did it rain?", choices=("Yes", "No"), answer="Yes",
    audio_sha256="a" * 64,
)  # fmt: skip
ENDINGS = ("</think>Yes", "</think>No", "</think>Maybe", "", "<think></think>Yes")


def candidate_of(
    draw: int, completion: str, *, finish: Finish = Finish.STOP, prompt_hash: str = "p"
) -> Candidate:
    """Build a candidate of the one question."""
    return Candidate(
        question_id="q", draw=draw, completion=completion, thinking="", answer=None, finish=finish,
        num_tokens=len(completion), logprob_sum=-1.0, audio_tokens=13, prompt_hash=prompt_hash,
        model_hash="m", seed=0,
    )  # fmt: skip


def correct(num: int, *, first: int = 0) -> list[Candidate]:
    """Build correct candidates with different thinking, the shortest first."""
    return [
        candidate_of(first + i, f"<think>drop {'and drop ' * i}</think>Yes") for i in range(num)
    ]


def wrong(num: int, *, first: int = 100) -> list[Candidate]:
    """Build wrong candidates."""
    return [candidate_of(first + i, f"<think>dry {i}</think>No") for i in range(num)]


CANDIDATES = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(ENDINGS), st.sampled_from(Finish)), max_size=20
).map(
    lambda rows: [
        candidate_of(draw, f"cue {cue}{ending}" if cue else ending, finish=finish)
        for draw, (cue, ending, finish) in enumerate(rows)
    ]
)
RECIPES = st.builds(
    SelectionRule,
    strategy=st.sampled_from(Strategy),
    top_k=st.integers(1, 5),
    min_valid=st.integers(1, 5),
    zone_weights=st.dictionaries(st.sampled_from(Zone), st.sampled_from((0.0, 0.5, 2.0))),
    seed=st.integers(0, 9),
)


def test_only_correct_and_wrong_attempts_make_the_rate() -> None:
    """Errors, cut-off and unparsed attempts say nothing about how hard a question is."""
    assert Rate(1, 2) == rate(Grade)
    assert 0.5 == rate(Grade).value
    assert Rate(0, 0) == rate([Grade.ERROR, Grade.TRUNCATED])
    assert 0.0 == rate([]).value


@pytest.mark.parametrize(
    ("num_correct", "num_valid", "zone"),
    [
        (0, 3, Zone.UNDECIDED),
        (3, 3, Zone.UNDECIDED),
        (0, 4, Zone.UNSOLVED),
        (1, 4, Zone.HARD),
        (5, 15, Zone.HARD),
        (6, 16, Zone.MEDIUM),
        (2, 4, Zone.MEDIUM),
        (9, 15, Zone.MEDIUM),
        (10, 15, Zone.EASY),
        (15, 16, Zone.EASY),
        (4, 4, Zone.MASTERED),
    ],
)
def test_zones_follow_the_rate(num_correct: int, num_valid: int, zone: Zone) -> None:
    """Borders are exact at a third and two thirds and the ends have zones of their own."""
    assert zone == zone_of(num_correct, num_valid, min_valid=4)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.data())
def test_the_same_rate_is_the_same_zone(
    num_valid: int, factor: int, min_valid: int, data: st.DataObject
) -> None:
    """Zones never depend on how many attempts were made, once there are enough."""
    num_correct = data.draw(st.integers(0, num_valid))
    if num_valid >= min_valid:
        assert zone_of(num_correct, num_valid, min_valid=min_valid) == zone_of(
            num_correct * factor, num_valid * factor, min_valid=min_valid
        )


@given(st.integers(1, 60))
def test_zones_rise_with_the_rate(num_valid: int) -> None:
    """One more correct attempt never makes a question harder."""
    order = list(Zone)
    zones = [order.index(zone_of(k, num_valid, min_valid=1)) for k in range(num_valid + 1)]
    assert all(low <= high for low, high in pairwise(zones))


@pytest.mark.parametrize(
    ("num_correct", "num_valid", "min_valid"), [(3, 2, 1), (-1, 2, 1), (0, 0, 0)]
)
def test_impossible_counts_are_refused(num_correct: int, num_valid: int, min_valid: int) -> None:
    """A count that cannot be is a defect of the caller."""
    with pytest.raises(ValueError, match="valid"):
        zone_of(num_correct, num_valid, min_valid=min_valid)


def test_zone_borders_must_not_cross() -> None:
    """A rule whose zones overlap is refused."""
    with pytest.raises(ValidationError, match="is not below easy_min_rate"):
        SelectionRule(hard_max_rate=0.7)


@given(CANDIDATES, RECIPES)
def test_every_candidate_is_an_example_or_has_a_reason(
    candidates: list[Candidate], rule: SelectionRule
) -> None:
    """Nothing vanishes: examples and drops add up, and the order of arrival changes nothing."""
    selection = examples_of(QUESTION, candidates, rule)
    assert len(candidates) == len(selection.examples) + sum(selection.drops.values())
    assert len(candidates) == sum(selection.grades.values())
    assert all(num > 0 for num in selection.drops.values())
    assert selection == examples_of(QUESTION, candidates[::-1], rule)
    by_draw = {candidate.draw: candidate for candidate in candidates}
    for example in selection.examples:
        assert by_draw[example.draw].completion == example.completion
        assert rule.zone_weights.get(selection.zone, 1.0) == example.weight
        assert selection.rate.value == example.rate
    if rule.strategy is Strategy.TOP_K:
        assert len(selection.examples) <= rule.top_k


@given(st.integers(0, 99), st.integers(1, 12))
def test_the_top_k_are_part_of_the_top_k_plus_one(seed: int, k: int) -> None:
    """Raising k only ever adds examples."""
    candidates = correct(12)

    def draws(top_k: int) -> set[int]:
        chosen = select(candidates, SelectionRule(top_k=top_k, seed=seed))
        return {candidate.draw for candidate in chosen}

    assert draws(k) <= draws(k + 1)
    assert min(k, 12) == len(draws(k))


def test_the_choice_is_blind_to_length() -> None:
    """Over many seeds each trace stays equally often; the shortest has no advantage."""
    counts: Counter[int] = Counter()
    for seed in range(2_000):
        chosen = select(correct(8), SelectionRule(top_k=2, seed=seed))
        counts.update(candidate.draw for candidate in chosen)
    # 2,000 x 2 / 8 = 500 expected, standard deviation 19.4; four of them.
    assert all(422 < counts[draw] < 578 for draw in range(8))


def reasons(candidates: Sequence[Candidate], rule: SelectionRule) -> dict[DropReason, int]:
    """Count what became of the candidates."""
    return dict(examples_of(QUESTION, candidates, rule).drops)


def test_each_reason_to_drop_is_counted() -> None:
    """One candidate of every kind is dropped under its own name."""
    candidates = [
        *correct(4),
        *wrong(1),
        candidate_of(10, "<think>drop </think>Yes "),
        candidate_of(11, "</think>Yes"),
        candidate_of(12, "<think>x</think>Perhaps"),
        candidate_of(13, "<think>x</think>Yes", finish=Finish.LENGTH),
        candidate_of(14, "", finish=Finish.ERROR),
        candidate_of(15, "<think>x<|im_start|></think>Yes"),
    ]
    assert {
        DropReason.WRONG: 1,
        DropReason.CONTROL_TOKEN: 1,
        DropReason.NO_THINKING: 1,
        DropReason.UNPARSED: 1,
        DropReason.TRUNCATED: 1,
        DropReason.ERROR: 1,
        DropReason.NOT_CHOSEN: 2,
    } == {k: n for k, n in reasons(candidates, SelectionRule()).items() if k != DropReason.MERGED}
    kept = reasons(candidates, SelectionRule(strategy=Strategy.ALL))
    assert DropReason.NOT_CHOSEN not in kept
    assert 1 == kept[DropReason.MERGED]


def test_opening_tag_stands_once_in_prompt_and_completion() -> None:
    """A second one after the prompt's own is as malformed as none: training refuses both."""
    open_twice = [candidate_of(draw, f"<think>x{draw}</think>Yes") for draw in range(4)]
    open_once = [candidate_of(10 + draw, f"x{draw}</think>Yes") for draw in range(3)]
    mixed = [*open_twice, *open_once, *wrong(1)]
    inside = SelectionRule(think_open_in_prompt=True)
    assert 4 == reasons(mixed, inside)[DropReason.NO_THINKING]
    assert 3 == reasons(mixed, SelectionRule())[DropReason.NO_THINKING]


def test_equal_completions_are_one_example_of_their_weight() -> None:
    """What a model says often when it is right teaches more than what it says once."""
    candidates = [candidate_of(draw, "<think>x</think>Yes") for draw in range(5)]
    candidates += [candidate_of(5, "<think>y</think>Yes"), *wrong(1)]
    rule = SelectionRule(strategy=Strategy.ALL, zone_weights={Zone.EASY: 0.5})
    examples = examples_of(QUESTION, candidates, rule).examples
    assert [("<think>x</think>Yes", 2.5), ("<think>y</think>Yes", 0.5)] == [
        (example.completion, example.weight) for example in examples
    ]


def test_too_few_valid_attempts_give_no_examples() -> None:
    """Three right of three is not yet a rate."""
    assert {DropReason.UNDECIDED: 3} == reasons(correct(3), SelectionRule())


def test_a_zone_of_weight_zero_gives_no_examples() -> None:
    """Leaving mastered questions out is a matter of their weight, and counted."""
    rule = SelectionRule(zone_weights={Zone.MASTERED: 0.0})
    assert {DropReason.ZONE_WEIGHT_ZERO: 5} == reasons(correct(5), rule)


def test_zone_weights_reach_the_examples() -> None:
    """What the rule says a zone weighs is what training reads."""
    rule = SelectionRule(zone_weights={Zone.HARD: 2.5})
    hard = examples_of(QUESTION, [*correct(1), *wrong(5)], rule)
    assert (Zone.HARD, [2.5]) == (hard.zone, [example.weight for example in hard.examples])
    easy = examples_of(QUESTION, [*correct(4), *wrong(1)], rule)
    assert (Zone.EASY, [1.0] * 3) == (easy.zone, [example.weight for example in easy.examples])


def test_a_veto_drops_what_would_have_been_examples() -> None:
    """A contaminated question keeps its grades but gives no example."""
    selection = examples_of(
        QUESTION, [*correct(4), *wrong(2)], SelectionRule(), veto=DropReason.CONTAMINATED
    )
    assert () == selection.examples
    assert {DropReason.CONTAMINATED: 4, DropReason.WRONG: 2} == dict(selection.drops)
    assert Zone.EASY is selection.zone


def test_a_draw_that_occurs_twice_is_refused() -> None:
    """A shard read twice must not count twice."""
    with pytest.raises(DataError, match="question q has two candidates of the same draw"):
        examples_of(QUESTION, [*correct(2), *correct(1)], SelectionRule())


def test_candidates_of_two_prompts_are_refused() -> None:
    """A rate over two prompts is a rate of nothing."""
    mixed = [*correct(2), candidate_of(9, "<think>x</think>Yes", prompt_hash="other")]
    with pytest.raises(GateError, match="come from different prompts or models"):
        examples_of(QUESTION, mixed, SelectionRule())
