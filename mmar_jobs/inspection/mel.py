"""The mel features that the model's audio tower reads, as a picture and as characters.

Not here: computing them (the model's processor). Their frequencies are those of Slaney's mel scale
from 0 to 8 kHz, as transformers' WhisperFeatureExtractor has it.

Legend: M mel bins, F mel frames.
"""

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmar_jobs.audio import HOP_LENGTH, SAMPLE_RATE_HZ

FRAMES_PER_S: Final = SAMPLE_RATE_HZ / HOP_LENGTH
TOKENS_PER_S: Final = 13
_TICKS_HZ: Final = (250, 500, 1000, 2000, 4000, 8000)
_LINEAR_BELOW_HZ: Final = 1000.0
_HZ_PER_MEL: Final = 200.0 / 3
_LOG_STEP: Final = math.log(6.4) / 27
_SHADES: Final = " .:-=+*#%@"


def mel_of(frequency_hz: float) -> float:
    """Slaney's mel of a frequency: linear to 1 kHz, logarithmic above."""
    if frequency_hz < _LINEAR_BELOW_HZ:
        return frequency_hz / _HZ_PER_MEL
    return _LINEAR_BELOW_HZ / _HZ_PER_MEL + math.log(frequency_hz / _LINEAR_BELOW_HZ) / _LOG_STEP


def bin_of(frequency_hz: float, num_bins: int) -> float:
    """The mel bin (from 0, fractional) whose triangle is centred on `frequency_hz`."""
    return mel_of(frequency_hz) / mel_of(SAMPLE_RATE_HZ / 2) * (num_bins + 1) - 1


def mel_svg(mel_MF: NDArray[np.float32], *, alt: str) -> str:
    """The features over time (seconds, audio tokens) and frequency (kHz) as an SVG element."""
    from mmar_jobs.report.svg import SOFT, figure, to_svg  # noqa: PLC0415 - matplotlib

    num_bins, num_frames = mel_MF.shape
    duration_s = num_frames / FRAMES_PER_S
    with figure(9.6, 3.1) as (made, (axes,)):
        image = axes.imshow(
            mel_MF,
            origin="lower",
            aspect="auto",
            interpolation="nearest",
            cmap="magma",
            extent=(0, duration_s, -0.5, num_bins - 0.5),
        )
        axes.set_yticks(
            [bin_of(tick, num_bins) for tick in _TICKS_HZ],
            [f"{tick / 1000:g}" for tick in _TICKS_HZ],
        )
        axes.set_ylim(-0.5, num_bins)
        axes.set_xlabel("time (s)")
        axes.set_ylabel("frequency (kHz, mel scale)")
        tokens = axes.secondary_xaxis("top", functions=(_to_tokens, _to_seconds))
        tokens.set_xlabel(f"audio tokens ({TOKENS_PER_S} a second)", color=SOFT)
        tokens.tick_params(labelcolor=SOFT)
        bar = made.colorbar(image, ax=axes, pad=0.012, aspect=24)
        bar.set_label("log-mel energy (normalised)", color=SOFT)
        bar.outline.set_visible(False)
        return to_svg(made, "mel", alt)


def _to_tokens(time_s: Any) -> Any:
    return time_s * TOKENS_PER_S


def _to_seconds(num_tokens: Any) -> Any:
    return num_tokens / TOKENS_PER_S


def describe(mel_MF: NDArray[np.float32]) -> str:
    """The picture in a sentence, for those who do not see it."""
    num_bins, num_frames = mel_MF.shape
    loudness_F = mel_MF.mean(axis=0)
    if np.ptp(mel_MF) == 0:
        return f"Mel spectrogram of {num_frames / FRAMES_PER_S:.2f} s: nothing but silence."
    peak = int(loudness_F.argmax())
    band = int(mel_MF.mean(axis=1).argmax())
    ticks = [(abs(bin_of(hz, num_bins) - band), hz) for hz in range(50, 8000, 50)]
    return (
        f"Mel spectrogram of {num_frames / FRAMES_PER_S:.2f} s, {num_bins} bins from 0 to 8 kHz; "
        f"loudest at {peak / FRAMES_PER_S:.2f} s, most energy near {min(ticks)[1] / 1000:g} kHz."
    )


def mel_shades(mel_MF: NDArray[np.float32], *, width: int, height: int) -> list[str]:
    """The features as lines of characters, high frequencies first; a darker character is louder."""
    cells = _resized(mel_MF, width=min(width, mel_MF.shape[1]), height=height)
    low, high = float(cells.min()), float(cells.max())
    scaled = (cells - low) / (high - low or 1.0) * (len(_SHADES) - 1)
    return ["".join(_SHADES[round(float(cell))] for cell in row) for row in scaled[::-1]]


def _resized(mel_MF: NDArray[np.float32], *, width: int, height: int) -> NDArray[np.float32]:
    """Means over blocks: `height` bands, `width` spans of time."""
    bands = np.stack([part.mean(axis=0) for part in np.array_split(mel_MF, height, axis=0)])
    spans = [part.mean(axis=1) for part in np.array_split(bands, width, axis=1)]
    return np.stack(spans, axis=1).astype(np.float32)
