"""Tests of the rewards: what looks like an answer and is none earns nothing."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmar_jobs.errors import DataError
from mmar_jobs.recipes import RewardRecipe
from mmar_jobs.records import Finish, Question
from mmar_jobs.rewards import REWARDS, Circumstances, rated_id, total_reward
from tests.fakes import make_candidate, make_question, think

KNOWN = Circumstances(solved_muted=False, max_tokens=100, think_open_in_prompt=False)
QUESTION = make_question(choices=("a dog", "a cat", "a dog and a cat"), answer="a dog")


def earned(
    completion: str,
    known: Circumstances = KNOWN,
    *,
    finish: Finish = Finish.STOP,
    num_tokens: int = 12,
    question: Question = QUESTION,
) -> dict[str, float]:
    """Every reward of one completion."""
    candidate = make_candidate(
        question, completion=completion, finish=finish, num_tokens=num_tokens
    )
    return {name: reward(question, candidate, known) for name, reward in REWARDS.items()}


def test_an_honest_answer_earns_all() -> None:
    """Thinking between its tags, then the right choice: every reward, no penalty."""
    expected = {"correct": 1, "format": 1, "length": 0, "loop": 0, "audio_dependence": 1}
    assert expected | {"rubric": 0} == earned(think("a dog"))


def test_every_reward_has_a_weight_and_a_name() -> None:
    """The settings and the registry know the same rewards."""
    assert REWARDS.keys() == RewardRecipe().weights.keys()


# A completion that tries to earn what it has not understood, by what it tries.
HACKS = {
    "all choices restated": think("a dog a cat a dog and a cat"),
    "choices as a list": think("- a dog\n- a cat\n- a dog and a cat"),
    "either or": think("a dog or a cat"),
    "letter only": think("A"),
    "letter with its choice": think("(A) a dog"),
    "number of the choice": think("1"),
    "answer inside the thinking only": think("", "The answer is a dog."),
    "answer inside the thinking, another after it": think("a cat", "The answer is a dog."),
    "no tags at all": "a dog",
    "two closing tags": "<think>I hear it.</think>a cat</think>a dog",
    "two thinkings": "<think>One.</think><think>Two.</think>a dog",
    "thinking that opens twice": "<think><think>I hear it.</think>a dog",
    "thinking never closed": "<think>I hear it. a dog",
    "right answer, then a hedge": think("a dog. Or perhaps a cat."),
    "right answer first, then another": think("a dog\na cat"),
    "part of a choice": think("dog"),
    "a word more than the choice": think("a dog barks"),
    "letters that only look alike": think("а dog"),
    "two answers in sentences": think("The answer is a dog. The answer is a cat."),
    "nothing after the thinking": think(""),
    "praise of the grader": think("The right answer, as you know, is a dog! Full marks."),
}


def judged(completion: str, score: float = 1.0) -> Circumstances:
    """A judge who gives this completion that score."""
    key = rated_id(make_candidate(QUESTION, completion=completion))
    return replace(KNOWN, rubric_scores={key: score})


@pytest.mark.parametrize("hack", HACKS)
def test_a_hack_is_no_right_answer(hack: str) -> None:
    """None counts as right, as dependent on the sound, or before a judge whom it has deceived."""
    found = earned(HACKS[hack], judged(HACKS[hack]))
    assert (0, 0, 0) == (found["correct"], found["audio_dependence"], found["rubric"])


@pytest.mark.parametrize(
    "completion",
    [
        think("a dog", thinking=""),
        think("a dog", thinking=" \n "),
        "</think>a dog",
        "I hear it.</think>a dog",
    ],
    ids=["empty thinking", "blank thinking", "only a closing tag", "opening tag left out"],
)
def test_a_right_answer_without_proper_thinking_earns_no_format(completion: str) -> None:
    """It may be right, but the form that is taught is another."""
    assert 0 == earned(completion)["format"]


def test_opening_tag_belongs_where_the_template_does_not_write_it() -> None:
    """A second opening tag after the prompt's own is as wrong as none without it."""
    inside = Circumstances(solved_muted=False, max_tokens=100, think_open_in_prompt=True)
    assert 1 == earned("I hear it.</think>a dog", inside)["format"]
    assert 0 == earned(think("a dog"), inside)["format"]


def test_format_cannot_be_earned_by_a_cut_completion() -> None:
    """A right-looking answer at the token limit may have gone on to say anything."""
    found = earned(think("a dog"), finish=Finish.LENGTH)
    assert (0, 0, -1) == (found["correct"], found["format"], found["length"])


@pytest.mark.parametrize(
    ("num_tokens", "cost"), [(1, 0), (80, 0), (90, -0.5), (95, -0.75), (100, -1), (130, -1)]
)
def test_length_costs_only_near_the_limit(num_tokens: int, cost: float) -> None:
    """Reasoning is free up to four fifths of the limit: shortness alone is never rewarded."""
    assert cost == pytest.approx(earned(think("a dog"), num_tokens=num_tokens)["length"])


@pytest.mark.parametrize(
    ("thinking", "cost"),
    [
        ("one " + "beep " * 8, -1),
        ("one " + "beep " * 7, 0),
        ("I hear a dog bark. " * 9, -1),
        ("one beep two beep three beep four beep five beep six beep seven beep eight beep", 0),
        ("first " + "a b " * 8 + "last", -1),
        (" ".join(f"second {number}: a tone" for number in range(40)), 0),
    ],
)
def test_loops_cost(thinking: str, cost: float) -> None:
    """Eight times the same words in a row, anywhere; a list that looks alike costs nothing."""
    assert cost == earned(think("a dog", thinking + " ."))["loop"]


@given(st.lists(st.sampled_from("ab"), max_size=60))
def test_loops_are_found_as_a_plain_search_finds_them(letters: list[str]) -> None:
    """The fast search over word numbers agrees with slicing."""
    words = ["<think>x", *letters, "y</think>a", "dog"]
    sizes = range(1, len(words) // 8 + 1)
    expected = any(
        words[start : start + size] * 8 == words[start : start + 8 * size]
        for size in sizes
        for start in range(len(words) - 8 * size + 1)
    )
    assert -float(expected) == earned(" ".join(words))["loop"]


def test_what_is_known_without_sound_earns_no_hearing() -> None:
    """A question that the model answers right when muted proves nothing about its ears."""
    deaf = Circumstances(solved_muted=True, max_tokens=100, think_open_in_prompt=False)
    found = earned(think("a dog"), deaf)
    assert (1, 0) == (found["correct"], found["audio_dependence"])


def test_a_judge_rewards_the_reasoning_of_right_answers() -> None:
    """By its score; a question without a rubric earns nothing, one rated in other words fails."""
    right = think("a dog")
    assert 0.6 == earned(right, judged(right, 0.6))["rubric"]
    assert 0 == earned(right)["rubric"]
    with pytest.raises(DataError, match=r"question q1 draw 0: the rubric scores are of other"):
        earned(right, judged(think("a dog", "other words")))


def test_total_is_the_weighted_sum() -> None:
    """Weights multiply; a reward without weight plays no part."""
    candidate = make_candidate(QUESTION, completion=think("a cat"), num_tokens=90)
    weights = {"correct": 1.0, "format": 0.25, "length": 2.0, "loop": 0.0}
    assert 0.25 - 1.0 == pytest.approx(total_reward(QUESTION, candidate, KNOWN, weights))
