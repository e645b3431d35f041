"""Tests of the search: what chooses a prompt never says that it is better."""

import random
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmar_jobs.errors import SettingsError
from mmar_jobs.prompt import SYSTEM_BY_VERSION
from mmar_jobs.prompting.compare import Outcome, Outcomes
from mmar_jobs.prompting.proposals import parse_proposals, recombine
from mmar_jobs.prompting.search import Ask, plan_search, search
from mmar_jobs.records import Grade, Question
from tests.fakes import make_question

RIGHT = Outcome(grade=Grade.CORRECT, num_tokens=10)
WRONG = Outcome(grade=Grade.WRONG, num_tokens=10)
VERSIONS = [*SYSTEM_BY_VERSION, *recombine(7, seed=0)]
QUESTIONS = [make_question(f"q{n}", audio_sha256=f"{n:064x}") for n in range(120)]


def luck(dice: random.Random, chances: Mapping[str, float]) -> Ask:
    """A model that is right by chance: `chances` by version, one half for all others."""

    def ask(version: str, questions: Sequence[Question]) -> Outcomes:
        chance = chances.get(version, 0.5)
        return {q.id: RIGHT if dice.random() < chance else WRONG for q in questions}

    return ask


def test_equal_variants_give_a_winner_in_at_most_one_of_twenty_searches() -> None:
    """No winner's curse: with all variants equal, 1,000 searches claim a better one 50 times.

    At most: the exact test is conservative.
    """
    plan = plan_search(QUESTIONS, len(VERSIONS) - 1, confirm_share=0.5, seed=0)
    claims = ahead = 0
    for seed in range(1000):
        ask = luck(random.Random(seed), {})
        found = search(VERSIONS, plan, ask, reference="v9", alpha=0.05)
        claims += found.is_better
        ahead += found.confirmation is not None
    assert ahead > 800  # nearly always something looks better before it is confirmed
    assert claims <= 50


def test_better_variant_is_found() -> None:
    """A prompt that is right far more often wins the search and its confirmation."""
    plan = plan_search(QUESTIONS, len(VERSIONS) - 1, confirm_share=0.5, seed=0)
    wins = 0
    for seed in range(40):
        found = search(
            VERSIONS, plan, luck(random.Random(seed), {"v7": 0.9}), reference="v9", alpha=0.05
        )
        wins += found.is_better and found.winner == "v7"
    assert wins >= 36


def test_confirmation_asks_only_questions_that_chose_nothing() -> None:
    """Blocks and confirmation are disjoint, every source on one side, and nothing is left out."""
    twins = [question.model_copy(update={"id": f"{question.id}b"}) for question in QUESTIONS]
    plan = plan_search([*QUESTIONS, *twins], 11, confirm_share=0.5, seed=3)
    parts = [*plan.blocks, plan.confirmation]
    ids = [question.id for part in parts for question in part]
    assert sorted(ids) == sorted(question.id for question in [*QUESTIONS, *twins])
    searched = {question.audio_sha256 for block in plan.blocks for question in block}
    assert searched.isdisjoint({question.audio_sha256 for question in plan.confirmation})
    sizes = [len(block) for block in plan.blocks]
    assert sizes == sorted(sizes)


def test_each_rung_drops_variants_until_one_is_left() -> None:
    """Every rung asks fewer variants on more questions; the reference is asked throughout."""
    asked: list[tuple[str, int]] = []
    plan = plan_search(QUESTIONS, len(VERSIONS) - 1, confirm_share=0.5, seed=0)
    guess = luck(random.Random(0), {"v7": 1.0})

    def ask(version: str, questions: Sequence[Question]) -> Outcomes:
        asked.append((version, len(questions)))
        return guess(version, questions)

    found = search(VERSIONS, plan, ask, reference="v9", alpha=0.05)
    num_asked = [len(rung.rows) for rung in found.rungs]
    assert num_asked == sorted(num_asked, reverse=True)
    assert len(VERSIONS) - 1 == num_asked[0]
    assert 1 == sum(row.is_kept for row in found.rungs[-1].rows)
    assert len(plan.blocks) + 1 == sum(version == "v9" for version, _ in asked)


def test_nothing_is_confirmed_where_no_variant_is_ahead() -> None:
    """The confirmation questions are not spent on a variant that lost already."""
    plan = plan_search(QUESTIONS, 2, confirm_share=0.5, seed=0)
    always = luck(random.Random(0), {"v9": 1.0})
    found = search(["v7", "v8"], plan, always, reference="v9", alpha=0.05)
    assert found.confirmation is None
    assert not found.is_better


@pytest.mark.parametrize("count", [0, 1, 9])
def test_too_few_questions_are_refused(count: int) -> None:
    """A search on a handful of questions would find noise."""
    with pytest.raises(SettingsError, match="give more questions"):
        plan_search(QUESTIONS[:count], 4, confirm_share=0.5, seed=0)


def test_search_among_nothing_is_refused() -> None:
    """The reference alone is no search."""
    plan = plan_search(QUESTIONS, 1, confirm_share=0.5, seed=0)
    with pytest.raises(SettingsError, match="nothing to search among"):
        search(["v9"], plan, luck(random.Random(0), {}), reference="v9", alpha=0.05)


@given(st.integers(0, 30), st.integers(0, 5))
def test_recombinations_are_new_and_repeatable(count: int, seed: int) -> None:
    """As many as asked for, none twice, none a known variant, each beginning as they all do."""
    texts = recombine(count, seed=seed)
    assert texts == recombine(count, seed=seed)
    assert count == len(set(texts))
    assert not set(texts) & set(SYSTEM_BY_VERSION.values())
    assert all(text.startswith(SYSTEM_BY_VERSION["baseline"]) for text in texts)


def test_proposals_are_parted_by_lines() -> None:
    """Texts of several lines, empty ones dropped, equal ones once."""
    content = "Hear it.\nChoose.\n---\n\n---\nListen well.\n ---\nHear it.\nChoose.\n"
    assert ["Hear it.\nChoose.", "Listen well."] == parse_proposals(content, "f")


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "holds no proposal"), ("---\n", "holds no proposal"), ("a b\n---\nc <think>", "2")],
)
def test_wrong_proposals_are_refused(content: str, said: str) -> None:
    """An empty file, and a text that fakes the chat, named by its place."""
    with pytest.raises(SettingsError, match=said):
        parse_proposals(content, "f")
