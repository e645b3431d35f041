"""Dropout whose masks are a function of seed, row and site: resume and recompute repeat them.

Not here: any random state. Nothing has to be saved in a checkpoint but the row number, and a layer
that is recomputed for its gradient draws the mask that it drew the first time. Kernels draw the
same bits without a tensor (kernels/dropout.py).
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

_LEVELS: Final = 1 << 16  # masks compare 16-bit draws, two of one word: p exact to 1.5e-5
_MIX: Final = 0x9E3779B97F4A7C15
_WORD: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class DropKey:
    """Two signed 32-bit words that name a mask; draws of 65,536 under `threshold` drop."""

    low: int
    high: int
    threshold: int


NOTHING_DROPPED: Final = DropKey(0, 0, 0)


def _mix(*numbers: int) -> int:
    """Splitmix64 (Steele et al. 2014): neighbouring inputs give unrelated keys."""
    state = 0
    for number in numbers:
        state = (state + number + _MIX) & _WORD
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _WORD
        state ^= state >> 31
    return state


def _signed(word: int) -> int:
    """The 32-bit word as two's complement, which int32 tensors and kernels take."""
    return (word & 0x7FFFFFFF) - (word & 0x80000000)


def _shift(word_N: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's of a signed number copies the sign."""
    return (word_N >> bits) & ((1 << (32 - bits)) - 1)


def hashed(num_words: int, key: DropKey, *, device: torch.device) -> Tensor:
    """(num_words,) int32 words, uniform and independent: a 32-bit finaliser over a counter.

    Constants are those of lowbias32 (Wellons 2018), the second key word goes in half way.
    """
    word_N = torch.arange(num_words, dtype=torch.int32, device=device)
    word_N.mul_(_signed(0x9E3779B1)).add_(key.low)
    word_N.bitwise_xor_(_shift(word_N, 16)).mul_(0x7FEB352D)
    word_N.bitwise_xor_(key.high)
    word_N.bitwise_xor_(_shift(word_N, 15)).mul_(_signed(0x846CA68B))
    return word_N.bitwise_xor_(_shift(word_N, 16))


class Dropout:
    """Dropout of all LoRA pairs of one model; the trainer sets `row` before each row."""

    def __init__(self, rate: float, *, seed: int) -> None:
        self.rate = rate
        self.seed = seed
        self.row = 0
        self.active = False

    @property
    def kept_share(self) -> float:
        """Share of inputs that are kept; what is kept must be divided by it."""
        return 1 - self._threshold / _LEVELS

    @property
    def _threshold(self) -> int:
        return round(self.rate * _LEVELS) if self.active else 0

    def key(self, site: int) -> DropKey:
        """Name of the mask of (seed, row, site)."""
        threshold = self._threshold
        if threshold == 0:
            return NOTHING_DROPPED
        word = _mix(self.seed, self.row, site)
        return DropKey(_signed(word), _signed(word >> 32), threshold)

    def mask(self, shape: torch.Size, site: int, *, device: torch.device) -> Tensor | None:
        """Mask of (seed, row, site), True where an input is dropped; None when inactive."""
        key = self.key(site)
        if key.threshold == 0:
            return None
        numel = shape.numel()
        draws = hashed((numel + 1) // 2, key, device=device).view(torch.int16)
        return draws[:numel].view(shape) < key.threshold - _LEVELS // 2
