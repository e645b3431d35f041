"""Tests of the two accuracies and of where they part."""

import json
import random
import re
from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mmar_jobs.errors import DataError
from mmar_jobs.records import Question
from mmar_jobs.score import official_correct, order_blind_choices, score, strict_correct
from mmar_jobs.stats import wilson_interval


def question_of(
    key: str, choices: Sequence[str], answer: str | None, *, category: str = "", sub: str = ""
) -> Question:
    """Build a question."""
    return Question(
        id=key, audio="a.wav", text="What?", choices=tuple(choices), answer=answer,
        category=category, sub_category=sub,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("prediction", "answer", "choices", "official", "strict"),
    [
        ("Yes", "Yes", ("Yes", "No"), True, True),
        ("yes.", "Yes", ("Yes", "No"), True, True),
        ("No", "Yes", ("Yes", "No"), False, False),
        ("", "Yes", ("Yes", "No"), False, False),
        (" ", "Yes", ("Yes", "No"), False, False),
        ("Yes or No", "Yes", ("Yes", "No"), False, False),
        ("I would say yes", "Yes", ("Yes", "No"), True, False),
        ("The answer is Yes", "Yes", ("Yes", "No"), True, True),
        ("man bites dog", "dog bites man", ("dog bites man", "man bites dog"), True, False),
        ("D in A", "D and A", ("D in A", "D and A"), False, False),
        ("near to far", "far to near", ("near to far", "far to near"), True, False),
        ("Yes", "Yes, it rains", ("Yes, it rains", "No"), False, False),
        ("00:06:00", "00:06:00", ("00:06:00", "00:10:00"), True, True),
        ("00:10:00", "00:06:00", ("00:06:00", "00:10:00"), False, False),
        ("ÉTÉ", "été", ("été", "hiver"), True, True),
        ("是", "是", ("是", "否"), True, True),
        ("?", "!", ("!", "?"), False, False),
    ],
)
def test_both_matchers_by_hand(
    prediction: str, answer: str, choices: tuple[str, ...], official: bool, strict: bool
) -> None:
    """The official matcher compares sets of words, the strict one wants one choice."""
    assert official == official_correct(prediction, answer, choices)
    assert strict == strict_correct(prediction, answer, choices)


WORDS = st.lists(
    st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4).map(" ".join),
    min_size=2, max_size=5, unique=True,
)  # fmt: skip


@given(WORDS, st.data())
def test_the_official_matcher_follows_its_description(
    words: list[str], data: st.DataObject
) -> None:
    """It agrees with its two conditions, checked word by word."""
    answer = data.draw(st.sampled_from(words))
    said = data.draw(st.lists(st.sampled_from("abcdefg"), max_size=6))
    all_there = all(word in said for word in answer.split())
    none_foreign = not any(
        word in said for choice in words for word in choice.split() if word not in answer.split()
    )
    expected = bool(said) and all_there and none_foreign
    assert expected == official_correct(" ".join(said), answer, words)


@given(WORDS, st.data())
def test_the_strict_matcher_never_accepts_a_wrong_choice(
    words: list[str], data: st.DataObject
) -> None:
    """Every choice is right for itself alone, where the official matcher may take another."""
    answer = data.draw(st.sampled_from(words))
    question = question_of("q", words, answer)
    assert [choice for choice in words if strict_correct(choice, answer, words)] == [answer]
    assert official_correct(answer, answer, words)
    blind = order_blind_choices(question)
    assert answer not in blind
    assert all(set(answer.split()) <= set(choice.split()) for choice in blind)


PHRASES = st.lists(
    st.lists(st.text("abÉ是9_", min_size=1, max_size=3), min_size=1, max_size=4).map(" ".join),
    min_size=2, max_size=5, unique_by=lambda phrase: frozenset(phrase.lower().split()),
)  # fmt: skip


@given(PHRASES, st.sampled_from(["{}", "{}.", "«{}»", "\t{}\n", "-- {} --"]))
def test_the_true_answers_text_always_passes(choices: list[str], around: str) -> None:
    """Each choice, as the answer, is accepted for itself, whatever the others are."""
    for answer in choices:
        assert official_correct(around.format(answer), answer, choices)


@given(PHRASES, st.text("abÉ是9_ .", max_size=12), st.randoms())
def test_the_order_of_choices_and_words_changes_nothing(
    choices: list[str], said: str, dice: random.Random
) -> None:
    """Neither of the choices nor of the words said: the matcher compares sets."""
    answer = choices[0]
    expected = official_correct(said, answer, choices)
    others, words = list(choices), said.split()
    dice.shuffle(others)
    dice.shuffle(words)
    assert expected == official_correct(said, answer, others)
    assert expected == official_correct(" ".join(words), answer, choices)


@given(PHRASES, st.text("abÉ是9_ .", max_size=12), st.data())
def test_a_wrong_choices_own_word_always_fails(
    choices: list[str], said: str, data: st.DataObject
) -> None:
    """Whatever else is said, be it the whole answer: one word that only a wrong choice has."""
    answer = choices[0]
    gold = set(re.findall(r"\w+", answer.lower()))
    private = sorted(set(re.findall(r"\w+", " ".join(choices[1:]).lower())) - gold)
    assume(private)
    word = data.draw(st.sampled_from(private))
    for text in (f"{said} {word}", f"{word} {answer}", f"{answer}. {said}, {word.upper()}!"):
        assert not official_correct(text, answer, choices)


QUESTIONS = [
    question_of("a", ("Yes", "No"), "Yes", category="sound", sub="rain"),
    question_of("b", ("far to near", "near to far"), "far to near", category="sound", sub="space"),
    question_of("c", ("One", "Two", "Six"), "Two", category="music"),
    question_of("d", ("One", "Two", "Six"), "Six", category="music"),
]


def test_accuracies_are_of_all_questions() -> None:
    """What was not answered counts as wrong in both, and is counted."""
    result = score({"a": "Yes", "b": "near to far", "c": " ", "elsewhere": "x"}, QUESTIONS)
    assert (4, 2, 1) == (result.num_items, result.num_answered, result.num_unknown)
    assert (0.5, 0.25) == (result.official_accuracy, result.strict_accuracy)
    assert wilson_interval(2, 4) == result.official_accuracy_ci95
    assert wilson_interval(1, 4) == result.strict_accuracy_ci95
    assert (1, 1) == (result.num_order_blind, result.num_official_only)


def test_groups_are_scored_by_name() -> None:
    """Each category and sub-category has the same numbers for its own questions."""
    result = score({"a": "Yes", "b": "near to far", "c": "Two"}, QUESTIONS)
    assert ["music", "sound"] == list(result.by_category)
    assert ["", "rain", "space"] == list(result.by_sub_category)
    sound = result.by_category["sound"]
    assert (2, 2, 1.0, 0.5) == (
        sound.num_items, sound.num_answered, sound.official_accuracy, sound.strict_accuracy,
    )  # fmt: skip
    assert 4 == sum(group.num_items for group in result.by_sub_category.values())


def test_the_json_has_the_promised_keys() -> None:
    """Scripts read these names."""
    row = json.loads(score({}, QUESTIONS).model_dump_json())
    accuracy = {
        "num_items", "num_answered", "official_accuracy", "official_accuracy_ci95",
        "strict_accuracy", "strict_accuracy_ci95",
    }  # fmt: skip
    assert accuracy | {"by_category", "by_sub_category"} <= row.keys()
    assert accuracy == row["by_category"]["music"].keys()
    assert [0, 0.0, 0.0] == [
        row["num_answered"], row["official_accuracy"], row["strict_accuracy"],
    ]  # fmt: skip


def test_nothing_to_score_against_is_an_error() -> None:
    """No questions, or a blind one, give a sentence instead of a number."""
    with pytest.raises(DataError, match="no questions to score against"):
        score({}, [])
    with pytest.raises(DataError, match="question x has no answer to score against"):
        score({"x": "Yes"}, [question_of("x", ("Yes", "No"), None)])
