"""Tests of contamination and of the split by source: no clip is ever on two sides."""

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from mmar_jobs.records import Question
from mmar_jobs.split import find_shared, source_keys, split_by_source
from tests.fakes import make_question

SEEDS = st.integers(0, 1000)


@st.composite
def question_lists(draw: st.DrawFn, prefix: str = "q") -> list[Question]:
    """Questions that share a few clips and videos with one another."""
    count = draw(st.integers(0, 12))
    return [
        make_question(
            f"{prefix}{index}",
            audio_sha256=draw(st.sampled_from(["", *"abcdefg"])),
            source_ids=tuple(draw(st.lists(st.sampled_from("uvwxyz"), max_size=2))),
        )
        for index in range(count)
    ]


def keys_of(questions: Iterable[Question]) -> set[tuple[str, str]]:
    """All source keys of questions."""
    return {key for question in questions for key in source_keys(question)}


@given(question_lists(), SEEDS, st.floats(0, 1))
def test_split_shares_no_source(questions: list[Question], seed: int, fraction: float) -> None:
    """Every question is on exactly one side, in order, and no source is on both."""
    train, heldout = split_by_source(questions, fraction=fraction, seed=seed)
    assert not keys_of(train) & keys_of(heldout)
    chosen = {question.id for question in heldout}
    assert [q for q in questions if q.id not in chosen] == train
    assert [q for q in questions if q.id in chosen] == heldout


@given(question_lists(), question_lists("new"), SEEDS)
def test_new_sources_move_nothing(
    questions: list[Question], more: list[Question], seed: int
) -> None:
    """Adding questions of other sources leaves every question on its side."""
    others = [
        question.model_copy(update={"audio_sha256": "", "source_ids": ()}) for question in more
    ]
    _, before = split_by_source(questions, fraction=0.5, seed=seed)
    _, after = split_by_source([*others, *questions], fraction=0.5, seed=seed)
    assert before == [question for question in after if question in questions]


@given(question_lists(), SEEDS, st.randoms())
def test_split_is_blind_to_order(questions: list[Question], seed: int, random: object) -> None:
    """The same questions in another order split the same way."""
    mixed = list(questions)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    _, one = split_by_source(questions, fraction=0.5, seed=seed)
    _, two = split_by_source(mixed, fraction=0.5, seed=seed)
    assert {question.id for question in one} == {question.id for question in two}


def test_fraction_is_met_on_average() -> None:
    """Of 2,000 clips a tenth is held out, give or take three standard deviations."""
    questions = [make_question(f"q{i}", audio_sha256=f"{i}") for i in range(2000)]
    _, heldout = split_by_source(questions, fraction=0.1, seed=0)
    assert abs(len(heldout) - 200) < 3 * (2000 * 0.1 * 0.9) ** 0.5


@given(question_lists(), question_lists("b"))
def test_what_is_left_shares_nothing(questions: list[Question], others: list[Question]) -> None:
    """After the shared questions are dropped no source is left on both sides, however linked."""
    shared = find_shared(questions, others)
    kept = [question for question in questions if question.id not in shared]
    dropped = [question for question in questions if question.id in shared]
    assert not keys_of(kept) & keys_of([*others, *dropped])


@given(question_lists(), question_lists("b"))
def test_nothing_is_dropped_for_nothing(questions: list[Question], others: list[Question]) -> None:
    """Questions are dropped only where at least one directly shares a source with the others."""
    direct = {q.id for q in questions if set(source_keys(q)) & keys_of(others)}
    shared = find_shared(questions, others)
    assert direct <= shared.keys()
    assert bool(direct) == bool(shared)


def test_evidence_names_kind_and_owner() -> None:
    """The message says what is shared, and with which question."""
    train = [
        make_question("t1", audio_sha256="ab" * 32),
        make_question("t2", audio_sha256="cd" * 32, source_ids=("video",)),
        make_question("t3", audio_sha256="cd" * 32),
        make_question("t4", audio_sha256="ef" * 32),
    ]
    bench = [
        make_question("b1", audio_sha256="ab" * 32),
        make_question("b2", audio_sha256="12" * 32, source_ids=("video",)),
    ]
    expected = {
        "t1": "has the same audio abababababab as b1",
        "t2": "has the same source video as b2",
        "t3": "has the same audio cdcdcdcdcdcd as t2",
    }
    assert expected == find_shared(train, bench)


def test_same_id_is_shared() -> None:
    """A row of the benchmark under its own id is found even where nothing else is known of it."""
    bench = make_question("b1", audio_sha256="")
    assert {"b1": "has the same id b1 as b1"} == find_shared([bench], [bench])
