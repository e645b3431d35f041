"""Tests of finding copies: real encoders, real sounds, and laws about prints of any kind.

Not here: figures of many clips.
"""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmar_jobs.datasets.fingerprint import FRAME_S, Print
from mmar_jobs.datasets.near import MAX_FRAMES, MIN_STRETCH_S, Index, Match, is_printable
from tests.datasets.print_cases import cut_out, damaged, joined, print_of
from tests.datasets.sound_cases import (
    COPIES,
    debian_sounds,
    melody,
    needs_espeak,
    needs_ffmpeg,
    print_file,
    prints_of,
    sentence,
    speak,
    write_wav,
)


def compare(first: Print, second: Print) -> Match | None:
    """The best match of two prints."""
    return next((match for _, _, match in Index([first]).search([second])), None)


@needs_ffmpeg
@needs_espeak
def test_copies_are_found_and_nothing_else(tmp_path: Path) -> None:
    """Speech and music through mp3 at 32 kbit/s, later and shorter; the stretch says how."""
    clips = [speak(tmp_path / f"s{i}.wav", *sentence(i, 14)[::-1]) for i in range(3)]
    clips += [write_wav(tmp_path / f"m{i}.wav", melody(i, 9)) for i in range(3)]
    index = Index([print_file(clip) for clip in clips])
    asked = [prints_of(clip, list(COPIES), tmp_path) for clip in clips]
    for kind, delay_s in zip(COPIES, (0, 0.731, -2, 0), strict=True):
        found = list(index.search([copies[kind] for copies in asked]))
        assert [(i, i) for i in range(6)] == sorted((mine, other) for mine, other, _ in found)
        for _, _, match in found:
            assert match.second_s - match.first_s == pytest.approx(delay_s, abs=0.12), kind
            assert match.stretch_s > 2
            assert match.probability < 1e-12


@needs_ffmpeg
def test_short_real_sounds_are_found_or_said_to_be_plain(tmp_path: Path) -> None:
    """Recordings of a second or two, later and at 32 kbit/s; shorter ones are too plain to know."""
    made = {path: print_file(path) for path in debian_sounds()}
    if len(made) < 20:
        pytest.skip("needs Debian's sound-theme-freedesktop and alsa-utils")
    printable = [path for path, own in made.items() if is_printable(own)]
    assert len(printable) >= 20
    assert min(made[path].num_frames for path in printable) * FRAME_S > 1
    plain = [own for path, own in made.items() if path not in printable]
    assert max(own.num_frames for own in plain) * FRAME_S < 2
    copies = {path: prints_of(path, ["shifted"], tmp_path)["shifted"] for path in printable}
    missed = [path.stem for path in printable if compare(made[path], copies[path]) is None]
    assert len(missed) <= 1, missed


def test_a_shared_stretch_is_located() -> None:
    """Begin and length of what two clips share, whatever is around it."""
    heard = print_of(1, 200)
    first = joined(print_of(2, 100), heard, print_of(3, 80))
    second = joined(print_of(4, 30), damaged(heard, 0.02), print_of(5, 300))
    match = compare(first, second)
    assert match is not None
    assert match.first_s == pytest.approx(3.2, abs=0.1)
    assert match.second_s == pytest.approx(0.96, abs=0.1)
    assert match.stretch_s == pytest.approx(6.4, abs=0.2)


def test_less_than_a_second_is_no_copy() -> None:
    """One word, or one bell, in two clips is not one clip."""
    heard = print_of(1, 200)
    for num_frames, is_found in ((28, False), (40, True)):
        second = joined(print_of(2, 100), cut_out(heard, 50, 50 + num_frames), print_of(3, 100))
        match = compare(heard, second)
        assert is_found == (match is not None and match.stretch_s >= MIN_STRETCH_S - 0.01)


def test_a_lonely_click_hides_no_copy() -> None:
    """Most of what is shared may come long after its first sound."""
    silence = Print(np.zeros(200, np.uint32), np.zeros(200, np.uint32))
    click = cut_out(print_of(9, 100), 40, 42)
    first = joined(click, silence, print_of(1, 300))
    assert is_printable(first)
    match = compare(first, joined(print_of(2, 50), damaged(first, 0.01)))
    assert match is not None
    assert match.stretch_s > 9


@settings(max_examples=20)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=6), st.floats(0, 0.03))
def test_both_ways_round_it_is_the_same(parts: list[int], share: float) -> None:
    """What is found in A of B is found in B of A, mirrored."""
    first = joined(*(print_of(part, 70) for part in parts))
    second = damaged(joined(*(print_of(part, 70) for part in parts[::-1])), share)
    one, other = compare(first, second), compare(second, first)
    assert one is not None
    assert other is not None
    assert (one.score, one.stretch_s) == (other.score, other.stretch_s)
    if len(set(parts)) == len(parts):
        assert (one.first_s, one.second_s) == (other.second_s, other.first_s)


def test_batches_change_nothing() -> None:
    """More prints and frames than are looked up at once: each pair is found as if it were alone."""
    mine = {seed: print_of(seed, 500) for seed in range(3)}
    asked = [print_of(1000 + i, 40) for i in range(1500)]
    places = {0: 7, 1: 1100, 2: 1499}
    for seed, place in places.items():
        asked[place] = damaged(mine[seed], 0.02)
    asked += [print_of(3000 + i, 3000) for i in range(12)]
    found = {mine_: (other, match) for mine_, other, match in Index([*mine.values()]).search(asked)}
    assert places == {seed: place for seed, (place, _) in found.items()}
    for seed, (place, match) in found.items():
        assert match == compare(mine[seed], asked[place])


def test_unlike_prints_never_match() -> None:
    """As the bound on the chance promises: nothing in 30,000 pairs."""
    prints = [print_of(seed, 300) for seed in range(250)]
    found = [(mine, other) for mine, other, _ in Index(prints).search(prints)]
    assert [(i, i) for i in range(250)] == sorted(found)


def test_what_is_printable_finds_itself() -> None:
    """And what has no features does not."""
    for seed, num_frames in itertools.product(range(6), (0, 1, 10, 30, 45, 60, 100)):
        made = print_of(seed, num_frames)
        if is_printable(made):
            assert compare(made, damaged(made, 0.01)) is not None
    assert is_printable(print_of(1, 100))
    assert not is_printable(print_of(1, 30))
    nothing = Print(np.zeros(500, np.uint32), np.zeros(500, np.uint32))
    assert not is_printable(nothing)
    assert compare(nothing, nothing) is None


def test_long_prints_are_heard_at_their_beginning() -> None:
    """A frame's place must fit into 15 bits: what comes after 17 minutes is not compared."""
    long = print_of(1, MAX_FRAMES + 400)
    assert compare(long, cut_out(long, MAX_FRAMES - 300, MAX_FRAMES)) is not None
    assert compare(long, cut_out(long, MAX_FRAMES, MAX_FRAMES + 400)) is None


def test_nothing_is_in_no_prints() -> None:
    """Empty sides are no error."""
    assert [] == list(Index([]).search([print_of(1)]))
    assert [] == list(Index([print_of(1)]).search([]))
