"""A world of short sounds: what happens in a clip, and the clip itself as 16-bit samples.

Not here: questions about it and files. All arithmetic from the seed to the samples is on integers,
so that the same seed gives the same bytes on every machine; a test pins a digest.
"""

# Shapes: N frames of a clip, C channels. Amplitudes are parts of 32768, frequencies in Hz.

import io
import math
import wave
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mmar_jobs.tiny.dice import Dice
from mmar_jobs.tiny.words import DURATIONS, LEVELS, PITCHES, TIMBRES

RATES_HZ: Final = (8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
MIN_EVENTS: Final = 2
MAX_EVENTS: Final = 4

# The clip's length is drawn apart from its events: a muted clip must not tell how many there were.
_CLIP_MS: Final = (2_500, 3_300)
_DURATION_MS: Final = {"short": (120, 160), "long": (380, 440)}
_GAP_MS: Final = 110
_AMPLITUDE: Final = {"soft": (900, 1_400), "loud": (9_000, 13_000)}
# All partials stay below 3.6 kHz: a file at 8 kHz keeps every one of them.
_PITCH_HZ: Final = {"low": (200, 250), "mid": (560, 680), "high": (1_500, 1_750)}
_MAX_PARTIAL_HZ: Final = 3_600
_NUM_PARTIALS: Final = 8
_RAMP_MS: Final = 10
_TABLE_BITS: Final = 12
_PEAK: Final = 32_767
_PAN_STEPS: Final = 16
_SINE: Final[NDArray[np.int64]] = np.array(
    [round(_PEAK * math.sin(2 * math.pi * i / 2**_TABLE_BITS)) for i in range(2**_TABLE_BITS)],
    dtype=np.int64,
)


@dataclass(frozen=True, slots=True)
class Event:
    """One sound, in the words that questions and traces use."""

    timbre: str
    pitch: str
    duration: str
    level: str


@dataclass(frozen=True, slots=True)
class Clip:
    """What happens in one clip and the form of its file; `key` seeds what the words leave open."""

    key: str
    events: tuple[Event, ...]
    rate_hz: int
    num_channels: int


def random_events(dice: Dice) -> tuple[Event, ...]:
    """Two to four events; their number and every property are uniform and independent."""
    num_events = dice.between(MIN_EVENTS, MAX_EVENTS)
    return tuple(
        Event(
            dice.one_of(TIMBRES), dice.one_of(PITCHES), dice.one_of(DURATIONS), dice.one_of(LEVELS)
        )
        for _ in range(num_events)
    )


def synthesize(clip: Clip) -> NDArray[np.int16]:
    """Samples of a clip, shape [N, C], at its own rate; 2.5 to 3.3 s."""
    dice = Dice("clip", clip.key)
    clip_ms = dice.between(*_CLIP_MS)
    lengths_ms = [dice.between(*_DURATION_MS[event.duration]) for event in clip.events]
    onsets_ms = _onsets(dice, lengths_ms, clip_ms)
    frames_NC = np.zeros((clip_ms * clip.rate_hz // 1000, clip.num_channels), dtype=np.int64)
    for event, onset_ms, length_ms in zip(clip.events, onsets_ms, lengths_ms, strict=True):
        sound_N = _sound(dice, event, length_ms, clip.rate_hz)
        start = onset_ms * clip.rate_hz // 1000
        # Both gains add up to one, so the mean of the channels does not depend on the side.
        left = dice.between(_PAN_STEPS // 4, 3 * _PAN_STEPS // 4)
        gains_C = np.array(
            [left, _PAN_STEPS - left] if clip.num_channels > 1 else [_PAN_STEPS // 2]
        )
        frames_NC[start : start + len(sound_N)] += (
            sound_N[:, None] * gains_C[None, :] * 2 // _PAN_STEPS
        )
    return frames_NC.astype(np.int16)


def wav_bytes(clip: Clip) -> bytes:
    """The clip as a 16-bit PCM WAV file."""
    with io.BytesIO() as buffer:
        with wave.open(buffer, "wb") as writer:
            writer.setnchannels(clip.num_channels)
            writer.setsampwidth(2)
            writer.setframerate(clip.rate_hz)
            writer.writeframes(synthesize(clip).astype("<i2").tobytes())
        return buffer.getvalue()


def _onsets(dice: Dice, lengths_ms: list[int], clip_ms: int) -> list[int]:
    """Start of each event in ms: the time that is left over is cut at random into the gaps."""
    spare_ms = clip_ms - sum(lengths_ms) - _GAP_MS * (len(lengths_ms) + 1)
    cuts_ms = sorted(dice.between(0, spare_ms) for _ in lengths_ms)
    onsets_ms = []
    for place, cut_ms in enumerate(cuts_ms):
        onsets_ms.append(cut_ms + _GAP_MS * (place + 1) + sum(lengths_ms[:place]))
    return onsets_ms


def _sound(dice: Dice, event: Event, length_ms: int, rate_hz: int) -> NDArray[np.int64]:
    """One event, shape [N], with its ramps."""
    num_frames = length_ms * rate_hz // 1000
    pitch_hz = dice.between(*_PITCH_HZ[event.pitch])
    amplitude = dice.between(*_AMPLITUDE[event.level])
    if event.timbre == "tone":
        wave_N = _sine(pitch_hz, num_frames, rate_hz)
    elif event.timbre == "buzz":
        wave_N = _buzz(pitch_hz, num_frames, rate_hz)
    else:
        wave_N = _noise(dice, pitch_hz, num_frames, rate_hz)
    return wave_N * amplitude // _PEAK * _envelope(num_frames, rate_hz) // 1024


def _sine(pitch_hz: int, num_frames: int, rate_hz: int) -> NDArray[np.int64]:
    turn = 2**32
    phase_N = np.arange(num_frames, dtype=np.int64) * (pitch_hz * turn // rate_hz) % turn
    return np.asarray(_SINE[phase_N >> (32 - _TABLE_BITS)])


def _buzz(pitch_hz: int, num_frames: int, rate_hz: int) -> NDArray[np.int64]:
    """All partials up to the limit, at equal strength, gated 35 times a second: a rattle."""
    partials = [k for k in range(1, _NUM_PARTIALS + 1) if k * pitch_hz <= _MAX_PARTIAL_HZ]
    sum_N = sum((_sine(k * pitch_hz, num_frames, rate_hz) for k in partials), np.int64(0))
    gate_N = np.where(_sine(35, num_frames, rate_hz) > 0, 1, 0)
    return np.asarray(sum_N) // math.isqrt(len(partials) * 2) * gate_N


def _noise(dice: Dice, pitch_hz: int, num_frames: int, rate_hz: int) -> NDArray[np.int64]:
    """A carrier whose strength jumps at random about once a cycle: noise around the pitch."""
    hold = max(1, rate_hz * 10 // (pitch_hz * 7))
    strengths = dice.signed(num_frames // hold + 1, peak=_PEAK)
    strength_N = np.repeat(strengths, hold)[:num_frames]
    return _sine(pitch_hz, num_frames, rate_hz) * strength_N * 3 // (2 * _PEAK)


def _envelope(num_frames: int, rate_hz: int) -> NDArray[np.int64]:
    """Linear ramps at both ends; parts of 1024."""
    ramp = max(1, _RAMP_MS * rate_hz // 1000)
    index_N = np.arange(num_frames, dtype=np.int64)
    edge_N = np.minimum(index_N, num_frames - 1 - index_N)
    return np.asarray(np.minimum(edge_N * 1024 // ramp, 1024))
