"""The synthetic world's sounds."""

import hashlib
import io
import wave

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmar_jobs.tiny.dice import Dice
from mmar_jobs.tiny.words import DURATIONS, LEVELS, PITCHES, TIMBRES
from mmar_jobs.tiny.world import RATES_HZ, Clip, Event, random_events, synthesize, wav_bytes

GOLDEN = [
    "77adfd00073f9dbc",
    "49b00955ecd121fe",
    "14b9d9ebd2533f99",
    "9f36afac6fd3dd4e",
    "80ae74137fa796e6",
    "cea11be08cc18186",
    "be05b9347303e214",
]
GOLDEN_DICE = [16, 53, 44]
EVENTS = (Event("tone", "low", "long", "loud"), Event("noise", "high", "short", "soft"))
ANY_EVENT = st.builds(
    Event, *(st.sampled_from(words) for words in (TIMBRES, PITCHES, DURATIONS, LEVELS))
)


def test_a_clip_has_the_same_bytes_on_every_machine() -> None:
    """The digest is pinned: integers only, from the seed to the file."""
    digests = [
        hashlib.sha256(wav_bytes(Clip("golden", EVENTS, rate_hz, 2))).hexdigest()[:16]
        for rate_hz in RATES_HZ
    ]
    assert GOLDEN == digests


@given(st.lists(ANY_EVENT, min_size=2, max_size=4), st.integers(0, 10**6), st.sampled_from((1, 2)))
def test_a_clip_is_never_clipped_and_never_silent(
    events: list[Event], seed: int, num_channels: int
) -> None:
    """Every mix of events stays inside 16 bits with room to spare, and is heard."""
    frames = synthesize(Clip(str(seed), tuple(events), 8_000, num_channels)).astype(int)
    assert 400 < np.abs(frames).max() < 32_000


@given(st.lists(ANY_EVENT, min_size=2, max_size=4))
def test_the_length_of_a_clip_says_nothing_about_its_events(events: list[Event]) -> None:
    """A muted clip keeps its length, so the length must not depend on what happens in it."""
    other = synthesize(Clip("k", EVENTS, 8_000, 1))
    assert len(other) == len(synthesize(Clip("k", tuple(events), 8_000, 1)))


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_a_wav_file_holds_its_clip(rate_hz: int) -> None:
    """Header and samples of the file are those of the clip."""
    clip = Clip("k", EVENTS, rate_hz, 2)
    with wave.open(io.BytesIO(wav_bytes(clip))) as file:
        assert (2, 2, rate_hz) == (file.getnchannels(), file.getsampwidth(), file.getframerate())
        frames = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    assert np.array_equal(synthesize(clip).ravel(), frames)


def test_all_sound_lies_below_four_kilohertz() -> None:
    """A file at 8 kHz keeps what one at 48 kHz has: above 4 kHz are under five percent."""
    for timbre in TIMBRES:
        events = (Event(timbre, "high", "long", "loud"),) * 2
        mono = synthesize(Clip("k", events, 48_000, 1))[:, 0].astype(float)
        power = np.abs(np.fft.rfft(mono)) ** 2
        above = np.fft.rfftfreq(len(mono), 1 / 48_000) > 4_000
        assert power[above].sum() < 0.05 * power.sum(), timbre


def test_events_are_drawn_evenly() -> None:
    """Each number of events and each word comes up about as often as the others."""
    dice = Dice("even")
    clips = [random_events(dice) for _ in range(3_000)]
    for num_events in (2, 3, 4):
        assert 0.30 < sum(len(events) == num_events for events in clips) / len(clips) < 0.37
    first = [events[0].timbre for events in clips]
    assert all(0.30 < first.count(timbre) / len(first) < 0.37 for timbre in TIMBRES)


def test_dice_with_one_key_repeat_themselves() -> None:
    """Equal keys give equal streams, other keys other ones, on every machine."""
    dice = Dice("a", 1)
    assert GOLDEN_DICE == [dice.below(100) for _ in range(3)]
    assert Dice("a", 2).shuffled(range(20)) != Dice("a", 1).shuffled(range(20))
