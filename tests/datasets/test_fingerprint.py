"""Tests of prints: what is heard of a waveform, and what is not."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mmar_jobs.audio import SAMPLE_RATE_HZ
from mmar_jobs.datasets.fingerprint import FRAME_S, HOP, Print, fingerprint
from tests.datasets.print_cases import print_of
from tests.datasets.sound_cases import melody
from tests.fakes import tone


def agreement(first: Print, second: Print) -> tuple[float, float]:
    """Share of the first's features known in the second, and the share of these that agree."""
    both_F = first.known_F & second.known_F
    num = int(np.bitwise_count(both_F).sum())
    unlike = int(np.bitwise_count((first.sign_F ^ second.sign_F) & both_F).sum())
    return num / first.num_known, 1 - unlike / num


def frames(made: Print, start: int, end: int) -> Print:
    """A part of a print."""
    return Print(made.sign_F[start:end], made.known_F[start:end])


@pytest.mark.parametrize(
    "waveform_N",
    [
        np.zeros(SAMPLE_RATE_HZ, np.float32),
        np.full(SAMPLE_RATE_HZ, 0.5, np.float32),
        tone(seconds=2, pitch_hz=1000)[4000:-4000, 0],
        np.tile([1e-5, -1e-5], 16_000).astype(np.float32),
    ],
    ids=["silence", "constant", "steady tone", "last bit"],
)
def test_where_nothing_happens_nothing_is_known(waveform_N: np.ndarray) -> None:
    """But for the edges: a steady sound cannot be told from another steady sound."""
    made = fingerprint(waveform_N)
    inner = Print(made.sign_F[4:-4], made.known_F[4:-4])
    assert made.num_frames > 20
    assert 0 == inner.num_known


def test_music_has_features_in_every_second() -> None:
    """About 25 of 32 ms frames a second, in each of them some of 32 features."""
    made = fingerprint(melody(1, 10))
    assert 10 == pytest.approx(made.num_frames * FRAME_S, abs=0.1)
    per_s = np.add.reduceat(np.bitwise_count(made.known_F).astype(int), range(0, 300, 31))
    assert per_s.min() > 30


@pytest.mark.parametrize("num_samples", [0, 1, HOP, 2 * HOP - 1])
def test_too_short_clips_have_empty_prints(num_samples: int) -> None:
    """No frame has one before it to differ from."""
    made = fingerprint(np.ones(num_samples, np.float32))
    assert (0, 0) == (made.num_frames, made.num_known)


@pytest.mark.parametrize("gain", [0.1, 3.0])
def test_loudness_changes_little(gain: float) -> None:
    """Features are differences in dB; only what is as soft as the last bit is lost."""
    sound_N = 0.3 * melody(2, 6)
    share, agree = agreement(fingerprint(sound_N), fingerprint(gain * sound_N))
    assert share > 0.7
    assert agree > 0.97


def test_a_later_start_shifts_the_print() -> None:
    """By one frame for 512 samples; with half a frame nearly all features stay the same."""
    sound_N = melody(3, 6)
    whole = frames(fingerprint(sound_N), 9, 150)
    share, agree = agreement(whole, frames(fingerprint(sound_N[3 * HOP :]), 6, 147))
    assert share > 0.98
    assert agree > 0.999
    share, agree = agreement(whole, frames(fingerprint(sound_N[HOP // 2 :]), 9, 150))
    assert share > 0.8
    assert agree > 0.95


def test_other_music_does_not_agree() -> None:
    """Half of the common features are equal by chance."""
    _, agree = agreement(fingerprint(melody(4, 10)), fingerprint(melody(5, 10)))
    assert agree == pytest.approx(0.5, abs=0.08)


def test_prints_do_not_change_without_a_new_version() -> None:
    """Caches and recipes hold them: this digest may only change together with VERSION."""
    noise_N = np.zeros(32_000, np.float32)
    state = 1
    for i in range(len(noise_N)):
        state = (1_103_515_245 * state + 12_345) % 2**31
        noise_N[i] = state / 2**31 - 0.5
    # Loudness that changes in steps of whole octaves needs no function of another library.
    noise_N *= np.repeat(2.0 ** -(np.arange(40) % 5), 800)
    assert (
        "0a39199522e473fe454c50c7476300f730c354545b3b99d07ef057c1bbda9b70"
        == hashlib.sha256(fingerprint(noise_N).pack()).hexdigest()
    )


@settings(max_examples=25)
@given(
    arrays.arrays(
        np.float32,
        st.integers(0, 4000),
        elements=st.floats(-1, 1, width=32, allow_subnormal=False),
    )
)
def test_any_waveform_has_a_print(waveform_N: np.ndarray) -> None:
    """One frame for 512 samples; an unknown feature has no sign; packed and back it is the same."""
    made = fingerprint(waveform_N)
    assert max(0, len(waveform_N) // HOP + 1 - 2) == made.num_frames
    assert not (made.sign_F & ~made.known_F).any()
    again = Print.unpack(made.pack())
    assert np.array_equal(made.sign_F, again.sign_F)
    assert np.array_equal(made.known_F, again.known_F)


def test_packed_prints_take_8_bytes_a_frame() -> None:
    """And bytes of another length are refused."""
    packed = print_of(1, 100).pack()
    assert 800 == len(packed)
    with pytest.raises(ValueError, match="buffer size"):
        Print.unpack(packed[:-1])
    with pytest.raises(ValueError, match="reshape"):
        Print.unpack(packed[:-4])
