"""Tests of what stages do with answers: asking, choosing, voting, and refusing to go on."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmar_jobs.artifact import Draft, begin
from mmar_jobs.audio import ClipReader, num_audio_tokens
from mmar_jobs.drawn_tokens import unpack_tokens
from mmar_jobs.engine import Sampling
from mmar_jobs.errors import GateError
from mmar_jobs.identity import ModelIdentity
from mmar_jobs.manifest import sha256
from mmar_jobs.recipes import SamplingRecipe
from mmar_jobs.records import Candidate, Finish, Question
from mmar_jobs.stages.answering import Asker, check_identity, summarise
from mmar_jobs.stages.asking import Asking
from mmar_jobs.stages.filter import Sieve
from mmar_jobs.stages.generate import _blocks, pick_questions
from mmar_jobs.stages.infer import predict, vote
from mmar_jobs.store import open_store
from mmar_jobs.zone import SelectionRule
from tests.fakes import (
    PROMPT_VERSION,
    FakeEngine,
    FakeOpener,
    Script,
    Track,
    edges_of,
    make_candidate,
    make_question,
    sound_bytes,
    think,
    tone,
)

SAMPLING = Sampling(
    temperature=0.9, top_p=0.95, top_k=0, repetition_penalty=1, max_tokens=64, seed=7, logprobs=True
)
IDENTITY = ModelIdentity(base_digest="b" * 64)


@pytest.fixture
def questions(tmp_path: Path) -> list[Question]:
    """Five ingested questions with clips."""
    made = []
    (tmp_path / "audio").mkdir()
    for index in range(5):
        data = sound_bytes(tone(pitch_hz=300 + 50 * index), 16_000)
        (tmp_path / "audio" / f"q{index}.wav").write_bytes(data)
        made.append(make_question(f"q{index}", audio_sha256=sha256(data)))
    return made


def ask(
    tmp_path: Path, questions: Sequence[Question], script: Script, asking: Asking, **options: Any
) -> tuple[list[Candidate], FakeEngine, Track]:
    """Have a fake engine answer, by shards of two questions."""
    engine = FakeEngine(IDENTITY, script, **options)
    track = Track()
    edges, _ = edges_of(tmp_path / "store", FakeOpener(script), track=track)
    draft = begin(edges.store, "answers", stage="generate", recipe={}, inputs={})
    assert isinstance(draft, Draft)
    names = Asker(engine, ClipReader(str(tmp_path)), edges, asking).ask(draft, questions, "label")
    return [c for name in names for c in draft.read_records(name, Candidate)], engine, track


def asking(*blocks: tuple[int, ...], **options: Any) -> Asking:
    """Ask in these blocks of draws."""
    return Asking(PROMPT_VERSION, SAMPLING, blocks, questions_per_shard=2, **options)


def says(*answers: str) -> Script:
    """The n-th draw of every question says the n-th answer."""
    return lambda _request, draw, _identity: think(answers[draw % len(answers)])


def test_candidates_are_verbatim_and_in_order(tmp_path: Path, questions: list[Question]) -> None:
    """One record per draw, with all that is needed to check it later."""
    found, engine, track = ask(tmp_path, questions, says("one", "two", "?"), asking((0, 1, 2)))
    assert [(q.id, draw) for q in questions for draw in range(3)] == [
        (candidate.question_id, candidate.draw) for candidate in found
    ]
    assert ["one", "two", None] * 5 == [candidate.answer for candidate in found]
    first = found[0]
    assert (think("one"), "I hear it.") == (first.completion, first.thinking)
    assert (IDENTITY.hash, 7, 13) == (first.model_hash, first.seed, first.audio_tokens)
    assert 15 == len(engine.asked)
    assert ({"label": 15}, {"label": 15}) == (track.done, track.totals)


def test_tokens_are_kept_only_where_they_are_asked_for(
    tmp_path: Path, questions: list[Question]
) -> None:
    """Generate's candidates carry their tokens; answers that nobody learns from stay small."""
    kept, _, _ = ask(tmp_path, questions, says("one"), asking((0,), keeps_tokens=True))
    (tmp_path / "store").rename(tmp_path / "first")
    left, _, _ = ask(tmp_path, questions, says("one"), asking((0,)))
    tokens = unpack_tokens(kept[0].drawn_tokens)
    assert ([0, 1, 2], [-0.5] * 3) == (tokens.ids.tolist(), tokens.logprobs.tolist())
    assert {""} == {candidate.drawn_tokens for candidate in left}


def test_muted_asking_mutes_every_clip(tmp_path: Path, questions: list[Question]) -> None:
    """The control hears silence of the same length."""
    _, engine, _ = ask(tmp_path, questions, says("one"), asking((0,), muted=True))
    assert {True} == {muted for _, _, muted in engine.asked}


@pytest.mark.parametrize(
    ("answers", "min_valid", "num_draws"),
    [
        (("one", "two"), 4, 4),  # two right, two wrong: settled after the first block
        (("one",), 4, 8),  # all right: one block more makes sure
        (("two",), 4, 8),  # all wrong: the same
        (("one", "two", "two", "two"), 4, 8),  # one right is too few at first, two are enough
        (("one", "two", "?", "?"), 4, 8),  # four valid ones among eight
        (("one", "two"), 6, 8),  # not enough valid attempts in the first block
        (("?",), 4, 16),  # nothing can be read: no attempt is valid
    ],
)
def test_adaptive_asking_stops_once_settled(
    tmp_path: Path,
    questions: list[Question],
    answers: tuple[str, ...],
    min_valid: int,
    num_draws: int,
) -> None:
    """A question is asked again until its examples are found or its fate is sure."""
    blocks = tuple(_blocks(SamplingRecipe(num_candidates=16, adaptive=True)))
    adaptive = asking(*blocks, top_k=2, min_valid=min_valid)
    found, _, track = ask(tmp_path, questions, says(*answers), adaptive)
    assert {num_draws} == set(Counter(candidate.question_id for candidate in found).values())
    assert list(range(num_draws)) == [c.draw for c in found if c.question_id == "q3"]
    assert track.totals == track.done


def test_adaptive_blocks_are_four_four_eight() -> None:
    """And one block where there is nothing to gain."""
    assert [4, 4, 8] == [len(b) for b in _blocks(SamplingRecipe(adaptive=True))]
    assert [16] == [len(block) for block in _blocks(SamplingRecipe())]
    assert [3] == [len(b) for b in _blocks(SamplingRecipe(num_candidates=3, adaptive=True))]


@given(st.integers(1, 40), st.booleans())
def test_blocks_cover_every_draw_once(count: int, adaptive: bool) -> None:
    """Whatever K is."""
    blocks = _blocks(SamplingRecipe(num_candidates=count, adaptive=adaptive))
    assert list(range(count)) == [draw for block in blocks for draw in block]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_lost": 1}, r"q0: the engine gave 3 completions for 4 draws: siblings were lost"),
        ({"audio_tokens": 4}, r"q0: the model would hear 4 audio tokens .* gives 13"),
        ({"broken": frozenset({"q1"})}, r"failed on 4 of 8 candidates, first question q1: 503"),
    ],
)
def test_engine_that_loses_something_is_stopped(
    tmp_path: Path, questions: list[Question], options: Any, named: str
) -> None:
    """Nothing of such a shard becomes durable; shards before it stay."""
    with pytest.raises(GateError, match=named):
        ask(tmp_path, questions, says("one"), asking((0, 1, 2, 3)), **options)
    assert [] == [key for key in open_store(str(tmp_path / "store")).list("") if "part-" in key]


def test_answer_longer_than_allowed_is_stopped(tmp_path: Path, questions: list[Question]) -> None:
    """An engine that ignores max_tokens ignores more than that."""
    with pytest.raises(GateError, match=r"65 tokens, more than --sampling\.max-tokens 64"):
        ask(tmp_path, questions, lambda *_: "word " * 65, asking((0,)))


def test_identity_is_compared_in_full() -> None:
    """Another base, another adapter, an adapter too many: each is named."""
    engine = FakeEngine(IDENTITY, says("one"))
    check_identity(engine, IDENTITY, name="the base")
    for other in (
        ModelIdentity(base_digest="c" * 64),
        ModelIdentity(base_digest="b" * 64, adapter_digest="a" * 64),
    ):
        with pytest.raises(GateError, match=r"with adapter none, but iteration 1 is base"):
            check_identity(engine, other, name="iteration 1")


@given(st.integers(1, 9), st.integers(0, 12), st.integers(0, 5))
def test_iterations_take_fresh_questions(count: int, num: int, seed: int) -> None:
    """Slices do not overlap before every question was asked once, and depend on the seed alone."""
    questions = [make_question(f"q{index}") for index in range(num)]
    sampling = SamplingRecipe(questions_per_iteration=count, seed=seed)
    picked = [
        [q.id for q in pick_questions(questions, sampling, iteration=i)] for i in range(1, 20)
    ]
    assert all(len(ids) == len(set(ids)) == min(count, num) for ids in picked)
    if count < num:
        flat = [key for ids in picked for key in ids]
        assert all(len(set(flat[i : i + num])) == num for i in range(0, len(flat) - num, num))


def test_all_questions_by_default() -> None:
    """Without a number every iteration asks all, in their order."""
    questions = [make_question(f"q{index}") for index in range(5)]
    assert questions == pick_questions(questions, SamplingRecipe(), iteration=3)


def test_summary_counts_finishes_and_tokens() -> None:
    """What the manifest says of candidates."""
    question = make_question()
    candidates = [
        make_candidate(question),
        make_candidate(question, 1, completion="<think>on and on", finish=Finish.LENGTH),
    ]
    counts, metrics = summarise(candidates)
    assert {
        "num_candidates": 2,
        "num_tokens": 24,
        "num_stop": 1,
        "num_length": 1,
        "num_parsed": 1,
    } == counts
    assert {"mean_token_logprob": -0.25} == metrics
    assert ({}, {}) == summarise([])
    bare = make_candidate(question, 2, logprob_sum=None)
    assert metrics == summarise([*candidates, bare])[1]


ANSWERS = st.lists(
    st.tuples(st.sampled_from(["one", "two", "three", "?"]), st.integers(-40, -1)),
    min_size=1,
    max_size=9,
)


def voters(answers: Sequence[tuple[str, int]]) -> list[Candidate]:
    """One candidate per (answer, logprob sum)."""
    return [
        make_candidate(make_question(), draw, answer, logprob_sum=float(logprob))
        for draw, (answer, logprob) in enumerate(answers)
    ]


@given(ANSWERS, st.randoms())
def test_vote_is_the_majority_and_blind_to_order(
    answers: list[tuple[str, int]], random: Any
) -> None:
    """The most frequent readable answer, with the thinking of one who gave it, verbatim."""
    candidates = voters(answers)
    prediction = vote(make_question(), candidates)
    counts = Counter(answer for answer, _ in answers if answer != "?")
    assert dict(counts) == prediction.votes
    if not counts:
        assert prediction.answer_prediction in make_question().choices
        assert prediction == vote(make_question(), candidates)
        return
    assert max(counts.values()) == counts[prediction.answer_prediction]
    agreeing = [c for c in candidates if c.answer == prediction.answer_prediction]
    assert prediction.thinking_prediction in [c.thinking for c in agreeing]
    mixed = list(candidates)
    random.shuffle(mixed)
    assert prediction == vote(make_question(), mixed)


def test_tie_goes_to_the_more_likely() -> None:
    """Of two answers with as many votes, the one whose best candidate is more probable."""
    candidates = voters([("one", -5), ("two", -3), ("one", -4), ("two", -9)])
    prediction = vote(make_question(), candidates)
    assert ("two", "draw 1") == (prediction.answer_prediction, prediction.thinking_prediction)


def test_engine_errors_are_no_answer() -> None:
    """A question that only met errors is not answered by chance."""
    failed = make_candidate(
        make_question(), completion="", finish=Finish.ERROR, error="502", num_tokens=0
    )
    with pytest.raises(GateError, match=r"failed on all 1 candidates \(502\)"):
        vote(make_question(), [failed])


def test_every_question_is_predicted_once() -> None:
    """In the order of the questions."""
    questions = [make_question(f"q{index}") for index in range(4)]
    candidates = [make_candidate(q, draw) for q in questions for draw in range(3)]
    assert [q.id for q in questions] == [p.id for p in predict(questions, candidates)]


def sieve(questions: Sequence[Question], **options: Any) -> Sieve:
    """A sieve for these questions."""
    by_id = {question.id: question for question in questions}
    guard = options.pop("guard", set())
    return Sieve(by_id, SelectionRule(top_k=2), PROMPT_VERSION, guard, **options)


def test_sieve_counts_every_candidate() -> None:
    """Examples and drop reasons add up to the candidates."""
    questions = [make_question(f"q{index}") for index in range(3)]
    candidates = [
        make_candidate(question, draw, ("one", "two", "?")[(draw + index) % 3])
        for index, question in enumerate(questions)
        for draw in range(9)
    ]
    kept = sieve(questions)
    examples = list(kept.examples(candidates))
    assert 6 == len(examples) == kept.tally.counts["num_examples"]
    assert 27 == len(examples) + kept.tally.drops.total()
    assert "wrong 9, unparsed 9, not_chosen 3" == kept.tally.why()
    metrics = kept.tally.metrics()
    assert pytest.approx(2 / 3) == metrics["valid_rate"]
    assert pytest.approx(1 / 2) == metrics["correct_rate"]
    assert 3 == metrics["zones"]["medium"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"prompt_hash": "x"}, "it was asked with another prompt than v9 renders now"),
        ({"model_hash": "x"}, "another model answered it than the candidates before"),
        ({"audio_tokens": 4}, "the model would hear 4 audio tokens"),
        ({"answer": "two"}, "its record says answer 'two', its completion does not"),
        ({"question_id": "q9"}, "candidate of unknown question q9"),
    ],
)
def test_sieve_stops_at_what_training_must_not_see(changes: dict[str, Any], named: str) -> None:
    """Each is an error, not a dropped row."""
    question = make_question()
    good = [make_candidate(question, draw) for draw in range(4)]
    bad = make_candidate(question, 4).model_copy(update=changes)
    with pytest.raises(GateError, match=named):
        list(sieve([question]).examples([*good, bad]))


def test_sieve_stops_at_siblings_that_lie_apart() -> None:
    """A rate over half of the siblings would be wrong."""
    one, two = make_question("q1"), make_question("q2")
    candidates = [make_candidate(one), make_candidate(two), make_candidate(one, 1)]
    with pytest.raises(GateError, match="candidates of question q1 lie apart"):
        list(sieve([one, two]).examples(candidates))


def test_sieve_stops_at_the_benchmark() -> None:
    """The last guard before training: a source of the benchmark is never an example."""
    question = make_question()
    guard = {("audio", question.audio_sha256)}
    with pytest.raises(GateError, match=r"shares its audio 0000.* with the benchmark"):
        list(sieve([question], guard=guard).examples([make_candidate(question)]))


def test_audio_tokens_of_the_fakes_are_right() -> None:
    """The fakes keep the promise that the checks rest on."""
    assert num_audio_tokens(16_000) == make_candidate(make_question()).audio_tokens
