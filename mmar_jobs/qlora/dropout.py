"""Dropout whose masks are a function of seed, row and site: resume and recompute repeat them.

Not here: any random state. Nothing has to be saved in a checkpoint but the row number, and a layer
that is recomputed for its gradient draws the mask that it drew the first time. Kernels draw the
same bits without a tensor (kernels/dropout.py), from keys in the device's memory: a kernel that is
replayed in a CUDA graph meets those of the row that is trained on now.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_LEVELS: Final = 1 << 16  # masks compare 16-bit draws, two of one word: p exact to 1.5e-5
_MIX: Final = 0x9E3779B97F4A7C15
_WORD: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class DropKey:
    """Two words that name a mask, (2,) int32; draws of 65,536 under `threshold` drop."""

    words: Tensor | None
    threshold: int


NOTHING_DROPPED: Final = DropKey(None, 0)


def _mix(seed: int, row: int, site_N: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Splitmix64 (Steele et al. 2014): neighbouring inputs give unrelated keys."""
    state_N = np.zeros_like(site_N)
    for number in (seed & _WORD, row & _WORD, site_N):
        state_N = state_N + np.asarray(number, np.uint64) + np.uint64(_MIX)
        state_N = (state_N ^ (state_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state_N = (state_N ^ (state_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state_N ^= state_N >> np.uint64(31)
    return state_N


def _signed(word: int) -> int:
    """The 32-bit word as two's complement, which int32 tensors and kernels take."""
    return (word & 0x7FFFFFFF) - (word & 0x80000000)


def _shift(word_N: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's of a signed number copies the sign."""
    return (word_N >> bits) & ((1 << (32 - bits)) - 1)


def hashed(num_words: int, key_2: Tensor) -> Tensor:
    """(num_words,) int32 words, uniform and independent: a 32-bit finaliser over a counter.

    Constants are those of lowbias32 (Wellons 2018), the second key word goes in half way.
    """
    word_N = torch.arange(num_words, dtype=torch.int32, device=key_2.device)
    word_N.mul_(_signed(0x9E3779B1)).add_(key_2[0])
    word_N.bitwise_xor_(_shift(word_N, 16)).mul_(0x7FEB352D)
    word_N.bitwise_xor_(key_2[1])
    word_N.bitwise_xor_(_shift(word_N, 15)).mul_(_signed(0x846CA68B))
    return word_N.bitwise_xor_(_shift(word_N, 16))


class Dropout:
    """Dropout of all LoRA pairs of one model, `num_sites` of them.

    The trainer calls `start_row` before each row; before the first it is row 0.
    """

    def __init__(self, rate: float, *, seed: int, num_sites: int) -> None:
        self.rate = rate
        self.seed = seed
        self.active = False
        self._num_sites = num_sites
        self._keys = self._draw_keys(0)
        self._keys_on: dict[torch.device, Tensor] = {}

    def start_row(self, row: int) -> None:
        """Draw the masks of this row from now on, on every device."""
        self._keys = self._draw_keys(row)
        for keys in self._keys_on.values():
            keys.copy_(self._keys, non_blocking=True)

    def _draw_keys(self, row: int) -> Tensor:
        """(sites, 2) int32, low words first."""
        words = _mix(self.seed, row, np.arange(self._num_sites, dtype=np.uint64))
        return torch.from_numpy(words.astype("<u8").view("<i4").reshape(-1, 2))

    @property
    def kept_share(self) -> float:
        """Share of inputs that are kept; what is kept must be divided by it."""
        return 1 - self.threshold / _LEVELS

    @property
    def threshold(self) -> int:
        """Draws of 65,536 under it drop; 0 while inactive."""
        return round(self.rate * _LEVELS) if self.active else 0

    def key(self, site: int, device: torch.device) -> DropKey:
        """Name of the mask of (seed, row, site); its words change with the row."""
        threshold = self.threshold
        if threshold == 0:
            return NOTHING_DROPPED
        if device not in self._keys_on:
            self._keys_on[device] = self._keys.to(device, copy=True)
        return DropKey(self._keys_on[device][site], threshold)

    def mask(self, shape: torch.Size, site: int, *, device: torch.device) -> Tensor | None:
        """Mask of (seed, row, site), True where an input is dropped; None when inactive."""
        key = self.key(site, device)
        if key.words is None:
            return None
        numel = shape.numel()
        draws = hashed((numel + 1) // 2, key.words).view(torch.int16)
        return draws[:numel].view(shape) < key.threshold - _LEVELS // 2
