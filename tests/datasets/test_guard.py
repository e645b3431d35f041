"""Tests of the guard's rules: what is a hit, by which evidence, whatever the order."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmar_jobs.datasets.guard import Ear, Hit, Rule, find_hits, find_sounds, guarded_digest
from mmar_jobs.records import Question
from mmar_jobs.split import find_shared, source_keys
from tests.datasets.print_cases import cut_out, damaged, joined, print_of
from tests.fakes import make_question

BENCH = [
    make_question("b1", source_ids=("youtube:AAAAAAAAAAA",), audio_sha256="f1"),
    make_question("b2", source_ids=("web:x.org/2",), audio_sha256="f2"),
    make_question("b3", audio_sha256="f3"),
]


def hits_of(*rows: Question) -> list[tuple[str, str, str, str]]:
    """What was found, in short."""
    return [(hit.id, hit.rule, hit.benchmark_id, hit.via) for hit in find_hits(rows, BENCH, {})]


def test_each_rule_names_what_is_shared() -> None:
    """Id, source and file; the evidence is a phrase with the shared key in it."""
    rows = [
        make_question("b2", audio_sha256="t1"),
        make_question("t2", source_ids=("youtube:AAAAAAAAAAA",), audio_sha256="t2"),
        make_question("t3", audio_sha256="f3"),
        make_question("t4", audio_sha256="t4", source_ids=("youtube:BBBBBBBBBBB",)),
    ]
    found = find_hits(rows, BENCH, {})
    assert [
        Hit(id="b2", rule=Rule.ID, benchmark_id="b2", key="b2"),
        Hit(id="t2", rule=Rule.SOURCE, benchmark_id="b1", key="youtube:AAAAAAAAAAA"),
        Hit(id="t3", rule=Rule.FILE, benchmark_id="b3", key="f3"),
    ] == found
    assert [
        "has the same id b2 as b2",
        "has the same source youtube:AAAAAAAAAAA as b1",
        "has the same audio f3 as b3",
    ] == [hit.evidence() for hit in found]


def test_a_sound_is_named_with_the_stretch() -> None:
    """Where it is in either clip, how long it is, and how sure that is."""
    heard = print_of(1, 400)
    clips = {"t1": joined(print_of(2, 50), damaged(cut_out(heard, 100, 300), 0.02)), "t2": heard}
    sounds = find_sounds(clips, {"f1": heard, "f2": print_of(3, 400), "f3": print_of(4)})
    rows = [make_question("t1", audio_sha256="t1"), make_question("t9", audio_sha256="t9")]
    [hit] = find_hits(rows, BENCH, sounds)
    assert (Rule.SOUND, "t1", "b1", "") == (hit.rule, hit.id, hit.benchmark_id, hit.key)
    assert hit.row_s == pytest.approx(1.6, abs=0.15)
    assert hit.benchmark_s == pytest.approx(3.2, abs=0.15)
    assert hit.stretch_s == pytest.approx(6.4, abs=0.3)
    assert (hit.agreement or 0) > 0.9
    assert (hit.probability or 1) < 1e-20
    said = hit.evidence()
    assert said.startswith("sounds like b1: 6.")
    assert "chance " in said


def test_the_same_file_is_no_second_hit_by_sound() -> None:
    """Of course the same bytes sound alike."""
    sounds = find_sounds({"f1": print_of(1)}, {"f1": print_of(1)})
    [hit] = find_hits([make_question("t", audio_sha256="f1")], BENCH, sounds)
    assert Rule.FILE is hit.rule


def test_the_strongest_evidence_comes_first() -> None:
    """Rules in their order, sounds by their score."""
    long, short = print_of(1, 500), print_of(2, 90)
    benchmark = {"f1": cut_out(short, 0, 80), "f2": long}
    sounds = find_sounds({"t": joined(short, long)}, benchmark)
    row = make_question("b3", audio_sha256="t", source_ids=("web:x.org/2",))
    assert [
        ("id", "b3"),
        ("source", "b2"),
        ("sound", "b2"),
        ("sound", "b1"),
    ] == [(hit.rule, hit.benchmark_id) for hit in find_hits([row], BENCH, sounds)]


def test_what_a_refused_row_shares_is_refused_too() -> None:
    """Over its file, over a video, over several rows; the evidence names the row between."""
    rows = [
        make_question("d", source_ids=("web:y.org",), audio_sha256="t3"),
        make_question("c", source_ids=("web:y.org",), audio_sha256="t2"),
        make_question("b", audio_sha256="t2", source_ids=("youtube:AAAAAAAAAAA",)),
        make_question("e", audio_sha256="t9"),
        make_question("a", audio_sha256="t3"),
    ]
    assert [
        ("d", "source", "b1", "c"),
        ("c", "file", "b1", "b"),
        ("b", "source", "b1", ""),
        ("a", "file", "b1", "d"),
    ] == hits_of(*rows)
    assert "as c, which is refused" in find_hits(rows, BENCH, {})[0].evidence()


def test_a_sound_passes_its_ties_on() -> None:
    """Another cut of a video that is known by its sound alone."""
    sounds = find_sounds({"t1": print_of(1)}, {"f1": print_of(1)})
    rows = [
        make_question("heard", audio_sha256="t1", source_ids=("web:z.org",)),
        make_question("other", audio_sha256="t2", source_ids=("web:z.org",)),
    ]
    found = find_hits(rows, BENCH, sounds)
    assert [("heard", "sound"), ("other", "source")] == [(hit.id, hit.rule) for hit in found]


@st.composite
def questions(draw: st.DrawFn, prefix: str) -> list[Question]:
    """Rows that share few enough ids, files and sources for some to share nothing."""
    num = draw(st.integers(0, 9))
    ids = draw(st.lists(st.integers(0, 25), min_size=num, max_size=num, unique=True))
    return [
        make_question(
            f"{draw(st.sampled_from([prefix, '']))}{key}",
            audio_sha256=draw(st.sampled_from(["", *"abcdefghijklm"])),
            source_ids=tuple(draw(st.sets(st.sampled_from("uvwxyz"), max_size=2))),
        )
        for key in ids
    ]


@settings(max_examples=40)
@given(questions("t"), questions("b"), st.randoms(use_true_random=False))
def test_order_changes_nothing(rows: list[Question], bench: list[Question], dice: object) -> None:
    """Neither that of the rows nor that of the benchmark: each row has the same hits."""

    def found() -> dict[str, list[Hit]]:
        by_id: dict[str, list[Hit]] = {}
        for hit in find_hits(rows, bench, {}):
            by_id.setdefault(hit.id, []).append(hit)
        return by_id

    before = found()
    dice.shuffle(rows)  # type: ignore[attr-defined]
    dice.shuffle(bench)  # type: ignore[attr-defined]
    assert before == found()


@settings(max_examples=40)
@given(questions("t"), questions("b"))
def test_a_row_that_shares_nothing_never_hits(rows: list[Question], bench: list[Question]) -> None:
    """A row is hit exactly when keys connect it to the benchmark, be it over other rows."""
    hits = find_hits(rows, bench, {})
    assert set(find_shared(rows, bench)) == {hit.id for hit in hits}
    owned = {key for question in bench for key in source_keys(question)}
    direct = {row.id for row in rows if owned & set(source_keys(row))}
    assert direct == {hit.id for hit in hits if not hit.via}
    by_id = {row.id: row for row in rows}
    theirs = {question.id: question for question in bench}
    for hit in hits:
        other = by_id[hit.via] if hit.via else theirs[hit.benchmark_id]
        kind = {"file": "audio"}.get(hit.rule, hit.rule)
        assert (kind, hit.key) in set(source_keys(by_id[hit.id])) & set(source_keys(other))


@settings(max_examples=15)
@given(st.lists(st.integers(0, 30), unique=True, max_size=12), st.randoms(use_true_random=False))
def test_no_other_clip_hides_a_sound(seeds: list[int], dice: object) -> None:
    """Copies are found whatever comes before, between and after them, and nothing else is."""
    benchmark = {f"b{seed}": print_of(seed) for seed in range(4)}
    clips = {f"t{seed}": damaged(print_of(seed), 0.02, seed) for seed in seeds}
    names = list(clips)
    dice.shuffle(names)  # type: ignore[attr-defined]
    ear = Ear(benchmark)
    for name in names:
        ear.hear(name, clips[name])
    assert find_sounds(clips, benchmark) == ear.sounds()
    found = {name: [other for other, _ in pairs] for name, pairs in ear.sounds().items()}
    assert {f"t{seed}": [f"b{seed}"] for seed in seeds if seed < 4} == found


def test_an_ear_compares_more_clips_than_it_keeps() -> None:
    """Over the size of a chunk, with progress for each."""
    benchmark = {"b": print_of(500)}
    clips = {f"t{seed}": print_of(seed, 40) for seed in range(600)} | {"copy": print_of(500)}
    advanced: list[int] = []
    assert ["copy"] == list(find_sounds(clips, benchmark, advanced.append))
    assert 601 == sum(advanced)


def test_the_digest_is_that_of_both_sides() -> None:
    """In any order, but of nothing else."""
    rows = [make_question("t1", audio_sha256="1"), make_question("t2", audio_sha256="2")]
    known = guarded_digest(rows, BENCH)
    assert known == guarded_digest(rows[::-1], BENCH[::-1])
    assert known == guarded_digest([*rows, rows[0]], BENCH)
    assert known != guarded_digest(rows[:1], BENCH)
    assert known != guarded_digest(rows, BENCH[:2])
    assert known != guarded_digest(BENCH, rows)
