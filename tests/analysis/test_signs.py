"""Tests of the signs: what is odd about a prediction, and that sound ones have none."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmar_jobs.analysis.signs import (
    NGRAM,
    Sign,
    find_signs,
    foreign_share,
    loop_length,
    repeated_share,
)
from mmar_jobs.grade import parse_answer
from tests.prediction_files import CHOICES

REAL_ROWS = Path(__file__).parents[3] / "shared" / "data" / "mmar-head.jsonl"
QUESTION = "Which animal is heard?"
SENTENCES = " ".join(f"At second {i} I hear event number {i * i} on the left." for i in range(40))
WORDS = " ".join(f"w{i}" for i in range(3_000))
CHINESE = "我听到了一只狗在叫，然后是一只猫在叫，最后下起了大雨。"


def signs_of(answer: str | None, thinking: str | None = "I hear it.", **more: Any) -> list[Sign]:
    """The signs of one prediction of a question about animals."""
    row = {"answer_prediction": answer, "thinking_prediction": thinking, **more}
    is_named = parse_answer(answer or "", CHOICES) is not None
    return find_signs(row, QUESTION, CHOICES, is_named=is_named)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("a dog", []),
        ("The answer is: A DOG.", []),
        (None, [Sign.NO_ANSWER]),
        (" \n", [Sign.NO_ANSWER]),
        ("B", [Sign.LETTER]),
        ("(b).", [Sign.LETTER]),
        ("Option C", [Sign.LETTER]),
        ("a dog or a cat", [Sign.SEVERAL_CHOICES]),
        ("a dog, a cat, rain", [Sign.SEVERAL_CHOICES]),
        ("an elephant", [Sign.NOT_A_CHOICE]),
        ("a doggy", [Sign.NOT_A_CHOICE]),
        ("I hear a dog here", [Sign.NOT_A_CHOICE]),
    ],
)
def test_answers(answer: str | None, expected: list[Sign]) -> None:
    """An answer that names no single choice has exactly one reason for it."""
    assert expected == signs_of(answer)


@pytest.mark.parametrize(
    ("answer", "thinking", "more", "expected"),
    [
        ("rain", "", {}, [Sign.NO_THINKING]),
        ("rain", None, {}, [Sign.NO_THINKING]),
        ("rain", "no full stop", {}, []),
        ("snow", "no full stop", {}, [Sign.NOT_A_CHOICE, Sign.TRUNCATED]),
        ("snow", "a full stop.", {}, [Sign.NOT_A_CHOICE]),
        ("rain", "It ends.", {"finish": "length"}, [Sign.TRUNCATED]),
        ("rain", "<think>It never ends.", {}, [Sign.TRUNCATED]),
        ("rain", WORDS[:9_999], {}, [Sign.TRUNCATED]),
        ("rain", SENTENCES, {}, []),
        ("rain", f"{SENTENCES} {SENTENCES}", {}, [Sign.REPEATED]),
        ("rain", f"{SENTENCES} {'wait, no. ' * 10}", {}, [Sign.LOOP]),
        ("rain", f"{SENTENCES} {'wait, no. ' * 2}", {}, []),
        ("rain", CHINESE, {}, [Sign.OTHER_LANGUAGE]),
        ("rain", f"{SENTENCES} They sing: {CHINESE}", {}, []),
    ],
)
def test_thinking(
    answer: str, thinking: str | None, more: dict[str, Any], expected: list[Sign]
) -> None:
    """Missing, cut, said twice, looping, or in another script; and the same just short of it."""
    assert expected == signs_of(answer, thinking, **more)


def test_over_long_thinking_is_what_the_benchmark_refuses() -> None:
    """From 10,000 characters on."""
    assert Sign.OVER_LONG not in signs_of("rain", WORDS[:9_999])
    assert Sign.OVER_LONG in signs_of("rain", WORDS[:10_000])


def test_a_question_in_a_script_allows_it() -> None:
    """Thinking in the question's own language is no drift."""
    row = {"answer_prediction": "rain", "thinking_prediction": CHINESE}
    assert [] == find_signs(row, "哪种动物在叫？", CHOICES, is_named=True)


LETTERS = st.lists(st.sampled_from("ab"), min_size=1, max_size=9)


@settings(max_examples=300)
@given(LETTERS, LETTERS, st.integers(1, 12), LETTERS)
def test_loops_are_found_as_by_trying_all(
    before: list[str], turn: list[str], num_turns: int, after: list[str]
) -> None:
    """The linear search gives what the definition gives, tried for every end and period."""
    tokens = [*before, *turn * num_turns, *after[: len(after) // 4]]
    longest = 0
    for length in range(30, len(tokens) + 1):
        end = tokens[-length:]
        for period in range(1, length // 3 + 1):
            if all(end[i] == end[i - period] for i in range(period, length)):
                longest = length
    assert longest == loop_length(tokens)


@given(st.lists(st.text("xyz", min_size=1, max_size=2), min_size=1, max_size=9), st.integers(3, 9))
def test_a_planted_loop_is_found(turn: list[str], num_turns: int) -> None:
    """Whatever came before, three turns of thirty tokens or more at the end are a loop."""
    before = [f"w{i}" for i in range(50)]
    planted = turn * num_turns
    found = loop_length([*before, *planted])
    assert (found >= len(planted)) == (len(planted) >= 30)


@given(st.lists(st.sampled_from("abc"), max_size=120))
def test_repeated_share_counts_copies(tokens: Sequence[str]) -> None:
    """Copies of earlier 8-grams, of all; nothing for texts of fewer than forty."""
    grams = [tuple(tokens[i : i + NGRAM]) for i in range(len(tokens) - NGRAM + 1)]
    copies = sum(gram in grams[:i] for i, gram in enumerate(grams))
    expected = copies / len(grams) if len(grams) >= 40 else 0.0
    assert expected == pytest.approx(repeated_share(tokens))


@given(st.text(max_size=200), st.text(max_size=50))
def test_no_text_raises(thinking: str, answer: str) -> None:
    """Whatever a model writes has signs, not an error; the share is one."""
    signs_of(answer, thinking)
    assert 0 <= foreign_share(thinking, [QUESTION]) <= 1


@pytest.mark.skipif(not REAL_ROWS.exists(), reason="the real rows are not here")
def test_real_reference_thinkings_have_no_signs() -> None:
    """What the benchmark's authors wrote is not cut, repeated, looping or in another script."""
    rows = [json.loads(line) for line in REAL_ROWS.read_text().splitlines()]
    assert 100 == len(rows)
    for row in rows:
        said = {"answer_prediction": row["answer"], "thinking_prediction": row["thinking"]}
        assert [] == find_signs(said, row["question"], row["choices"], is_named=True), row["id"]
