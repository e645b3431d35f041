"""What is measured of one clip, and when a clip is unusable or suspicious; pure but for decoding.

Not here: finding and reading files (clip_pool.py), comparing clips (near.py). All levels are of
what a model hears: mono at 16 kHz, 0 dBFS = full scale.
"""

# Shapes: N frames of a 16 kHz mono waveform, B blocks of 20 ms.

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mmar_jobs.audio import SAMPLE_RATE_HZ, decode, num_audio_tokens
from mmar_jobs.datasets.fingerprint import Print, fingerprint
from mmar_jobs.manifest import sha256
from mmar_jobs.records import Record

# Level of digital silence and below: 16-bit audio cannot hold less.
FLOOR_DBFS: Final = -100.0
SILENT_DBFS: Final = -60.0
MOSTLY_SILENT: Final = 0.95
CLIPPED: Final = 0.001
QUIET_DBFS: Final = -50.0
MAX_OFFSET: Final = 0.01
_BLOCK: Final = SAMPLE_RATE_HZ // 50
# A full-scale sine of 50 Hz stays within a ten-thousandth of its peak for 2 samples at 16 kHz, a
# clipped one for many; where the file was resampled, clipped tops ring beyond full scale instead.
_NEAR_PEAK: Final = 0.9999
_OVER: Final = 1.0 + 1e-4
_CLIP_LEVEL: Final = 0.95
_MIN_RUN: Final = 3


class ClipFacts(Record):
    """Measurements of one decoded clip.

    `rms_dbfs` and `peak_dbfs` are in dB, at least -100. `offset` is the mean sample (DC) as a share
    of full scale, without its sign. `clipped_share` is the share of samples on
    flat tops of a peak near full scale or beyond it; `silent_share` that of 20 ms blocks below
    -60 dBFS. `audio_tokens` is what the model hears of it, 13 a second.
    """

    audio_sha256: str
    size_bytes: int
    duration_s: float
    file_rate_hz: int
    num_channels: int
    rms_dbfs: float
    peak_dbfs: float
    offset: float
    clipped_share: float
    silent_share: float
    audio_tokens: int
    num_print_frames: int


def measure(data: bytes, name: str, *, max_s: float | None) -> tuple[ClipFacts, Print]:
    """Decode one file and measure it; raises DataError naming `name` when it cannot be used."""
    clip = decode(data, name, max_s=max_s)
    waveform_N = clip.waveform
    made = fingerprint(waveform_N)
    facts = ClipFacts(
        audio_sha256=sha256(data),
        size_bytes=len(data),
        duration_s=clip.duration_s,
        file_rate_hz=clip.file_rate_hz,
        num_channels=clip.num_channels,
        rms_dbfs=_dbfs(float(np.sqrt(np.mean(waveform_N.astype(np.float64) ** 2)))),
        peak_dbfs=_dbfs(float(np.abs(waveform_N).max())),
        offset=abs(float(waveform_N.mean(dtype=np.float64))),
        clipped_share=clipped_share(waveform_N),
        silent_share=silent_share(waveform_N),
        audio_tokens=num_audio_tokens(len(waveform_N)),
        num_print_frames=made.num_frames,
    )
    return facts, made


def clipped_share(waveform_N: NDArray[np.float32]) -> float:
    """Share of samples on flat tops near full scale or beyond it, 0 to 1."""
    level_N = np.abs(waveform_N)
    peak = float(level_N.max(initial=0.0))
    if peak < _CLIP_LEVEL:
        return 0.0
    is_top_N = (level_N >= _NEAR_PEAK * min(peak, 1.0)).astype(np.int8)
    edges = np.flatnonzero(np.diff(is_top_N, prepend=0, append=0))
    lengths = edges[1::2] - edges[::2]
    num_flat = int(lengths[lengths >= _MIN_RUN].sum())
    return max(num_flat, int((level_N > _OVER).sum())) / len(waveform_N)


def silent_share(waveform_N: NDArray[np.float32]) -> float:
    """Share of 20 ms blocks below -60 dBFS, 0 to 1; a shorter rest is left out."""
    num_blocks = len(waveform_N) // _BLOCK
    if num_blocks == 0:
        return 0.0
    block_BN = waveform_N[: num_blocks * _BLOCK].astype(np.float64).reshape(num_blocks, _BLOCK)
    return float((np.mean(block_BN**2, axis=1) < 10 ** (SILENT_DBFS / 10)).mean())


def unusable(facts: ClipFacts) -> str:
    """Why nobody can learn from this clip, or an empty text."""
    if facts.peak_dbfs <= SILENT_DBFS:
        return f"is silent: its peak is {facts.peak_dbfs:.0f} dBFS"
    return ""


def suspicious(facts: ClipFacts) -> dict[str, str]:
    """What a person should listen to, by kind; such a clip can be used."""
    found = {}
    if facts.clipped_share >= CLIPPED:
        found["clipped"] = f"{facts.clipped_share:.1%} of it is clipped"
    if facts.silent_share >= MOSTLY_SILENT:
        found["mostly silent"] = f"{facts.silent_share:.0%} of it is below {SILENT_DBFS:.0f} dBFS"
    if facts.rms_dbfs < QUIET_DBFS:
        found["quiet"] = f"its level (RMS) is {facts.rms_dbfs:.0f} dBFS"
    if facts.offset >= MAX_OFFSET:
        found["DC offset"] = f"its mean is {facts.offset:.1%} of full scale and not 0"
    return found


def _dbfs(amplitude: float) -> float:
    return max(FLOOR_DBFS, round(20 * math.log10(max(amplitude, 1e-9)), 2))
