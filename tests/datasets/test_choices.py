"""Tests of drawn choices: no text-only guesser does better than chance where that is possible."""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mmar_jobs.datasets.choices import Pool, fit_weights, inclusion, most_each
from mmar_jobs.datasets.drafts import Draft, Rule
from mmar_jobs.datasets.guess import guess_all
from mmar_jobs.records import Question, canonical

# How often each count from 1 on is the answer: small ones are frequent, as in life.
SKEWED = (24, 22, 18, 12, 8, 6, 4, 3, 2, 1)
NUM = 6000


def draft(answer: str, owner: str = "", *also_true: str) -> Draft:
    """A draft of which only the answer matters."""
    return Draft("i", "a.wav", "?", answer, owner=owner, also_true=also_true)


def questions(answers: Sequence[str], rule: Rule = "any", num_choices: int = 4) -> list[Question]:
    """A question about each answer, its choices drawn among all of them."""
    pool = Pool([draft(answer) for answer in answers], rule, num_choices)
    return [
        Question(
            id=str(i),
            audio="a.wav",
            text="?",
            choices=pool.draw(answer, random.Random(i)),
            answer=answer,
        )
        for i, answer in enumerate(answers)
    ]


def counts(weights: Sequence[int], seed: int = 0) -> list[str]:
    """Answers from 1 on, drawn by weight."""
    dice = random.Random(seed)
    return [str(n) for n in dice.choices(range(1, len(weights) + 1), weights=weights, k=NUM)]


def test_no_guesser_beats_chance_on_skewed_counts() -> None:
    """First, last, longest, shortest, smallest, median, largest, commonest: all within noise.

    Noise of 6,000 questions at a quarter is 0.56 points; four times that is allowed.
    """
    found = guess_all(questions(counts(SKEWED)))
    assert 8 == len(found)
    for name, guess in found.items():
        assert abs(guess.accuracy - 0.25) < 4 * 0.0056, name


def test_within_every_set_each_choice_is_equally_likely_right() -> None:
    """A guesser that knows every question and answer gains nothing: chi-square per set."""
    right: dict[frozenset[str], Counter[str]] = defaultdict(Counter)
    for question in questions(counts(SKEWED)):
        assert question.answer is not None
        right[frozenset(question.choices)][question.answer] += 1
    tested = [found for found in right.values() if found.total() >= 80]
    assert len(tested) >= 10
    p_values = [
        stats.chisquare([found[choice] for choice in chosen]).pvalue
        for chosen, found in right.items()
        if found.total() >= 80
    ]
    assert min(p_values) * len(p_values) > 1e-3
    assert stats.kstest(p_values, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("num_choices", [2, 3, 4, 6])
def test_the_answer_is_in_every_position_equally_often(num_choices: int) -> None:
    """Chi-square over the positions of the answer."""
    positions = Counter(
        question.choices.index(question.answer or "")
        for question in questions(counts(SKEWED), num_choices=num_choices)
    )
    assert set(range(num_choices)) == set(positions)
    assert stats.chisquare(list(positions.values())).pvalue > 1e-4


def test_what_cannot_hide_is_named() -> None:
    """An answer in half of the questions is found by text, and the guessers say so."""
    found = guess_all(questions(counts((50, 20, 10, 8, 5, 4, 2, 1))))
    assert found["commonest"].accuracy > 0.45
    assert found["smallest"].accuracy > 0.45


def test_balanced_answers_hide_again() -> None:
    """With no answer above a quarter of what is kept, the same guessers are at chance."""
    answers = counts((50, 20, 10, 8, 5, 4, 2, 1))
    kept: list[str] = []
    most = most_each(list(Counter(answers).values()), 4)
    for answer in answers:
        if kept.count(answer) < most:
            kept.append(answer)
    assert len(kept) > len(answers) / 2
    for name, guess in guess_all(questions(kept)).items():
        assert abs(guess.accuracy - 0.25) < 4 * (0.1875 / len(kept)) ** 0.5, name


@given(st.lists(st.integers(1, 500), min_size=1, max_size=30), st.integers(2, 6))
def test_the_cap_is_the_largest_that_works(counts: list[int], num_choices: int) -> None:
    """After cutting at the cap no answer is above 1/k; at one more, some answer would be."""
    k = min(num_choices, len(counts))
    most = most_each(counts, num_choices)

    def fits(cap: int) -> bool:
        kept = [min(count, cap) for count in counts]
        return max(kept) * k <= sum(kept)

    assert 1 <= most <= max(counts)
    assert fits(most)
    assert most == max(counts) or not fits(most + 1)


@given(st.lists(st.integers(1, 30), min_size=5, max_size=20))
def test_inclusion_probabilities_are_the_answers_shares(counts: list[int]) -> None:
    """The weights give each value the probability k p(a), wherever that is below 1."""
    shares = [4 * count / sum(counts) for count in counts]
    if max(shares) > 0.9:
        return
    found = inclusion(fit_weights(counts, 4), 4)
    assert all(abs(share - p) < 1e-3 for share, p in zip(shares, found, strict=True))


@given(
    st.lists(st.sampled_from(["1", "2", "3", "one", "Two", "two ", "7", "20"]), min_size=2),
    st.integers(2, 5),
    st.integers(0, 99),
)
def test_every_drawn_question_is_valid(answers: list[str], num_choices: int, seed: int) -> None:
    """The answer is among its choices exactly once, and no two choices are the same."""
    pool = Pool([draft(answer) for answer in answers], "any", num_choices)
    for answer in answers:
        choices = pool.draw(answer, random.Random(seed))
        assert choices == pool.draw(answer, random.Random(seed))
        forms = [canonical(choice) for choice in choices]
        if len({canonical(answer) for answer in answers}) == 1:
            assert () == choices
        else:
            assert 1 == choices.count(answer) == forms.count(canonical(answer))
            assert len(set(forms)) == len(forms) == min(num_choices, pool.num_choices)


def test_no_wrong_choice_is_true_of_the_clip() -> None:
    """Captions of the same recording, chosen or not, never meet."""
    drafts = [
        draft("dog", "r1", "car"),
        draft("car", "r2"),
        draft("rain", "r3"),
        draft("wind", "r4"),
    ]
    pool = Pool(drafts, "owners", 4)
    for seed in range(50):
        assert "car" not in pool.draw("dog", random.Random(seed))
        assert "dog" not in pool.draw("car", random.Random(seed))
        assert 3 == len(pool.draw("dog", random.Random(seed)))


def test_tempi_that_sound_alike_never_meet() -> None:
    """Neither near ones nor half and double: a metronome cannot tell them for sure."""
    tempi = [f"{bpm} beats per minute" for bpm in range(60, 200, 5)]
    pool = Pool([draft(tempo) for tempo in tempi], "tempo", 4)
    for seed in range(30):
        numbers = sorted(
            int(c.split()[0]) for c in pool.draw(tempi[seed % 20], random.Random(seed))
        )
        ratios = [b / a for i, a in enumerate(numbers) for b in numbers[i + 1 :]]
        assert all(ratio >= 1.2 and not 1.85 <= ratio <= 2.16 for ratio in ratios)
        assert len(numbers) >= 3


def test_the_length_of_captions_tells_nothing() -> None:
    """Captions of very different lengths: always the longest is right a quarter of the time."""
    dice = random.Random(1)
    answers = [f"clip {i} " + "word " * int(dice.expovariate(0.1)) for i in range(3000)]
    found = guess_all(questions(answers))
    for name in ("longest", "shortest", "first", "last"):
        assert abs(found[name].accuracy - 0.25) < 4 * 0.0079, name


def test_a_pool_of_two_and_of_one() -> None:
    """Yes and no are choices; a single answer is no question."""
    assert {"yes", "no"} == set(
        Pool([draft("yes"), draft("no")], "any", 4).draw("yes", random.Random(0))
    )
    assert () == Pool([draft("yes"), draft("Yes ")], "any", 4).draw("yes", random.Random(0))
