"""Dropout whose masks are a function of seed, row and site: resume and recompute repeat them.

Not here: any random state. Nothing has to be saved in a checkpoint but the row number, and a layer
that is recomputed for its gradient draws the mask that it drew the first time.
"""

import torch
from torch import Tensor

_LEVELS = 1 << 16  # masks compare 16-bit draws: four masks from one 64-bit draw, p exact to 1.5e-5
_MIX = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


def _mix(*numbers: int) -> int:
    """Splitmix64 (Steele et al. 2014): neighbouring inputs give unrelated seeds."""
    state = 0
    for number in numbers:
        state = (state + number + _MIX) & _WORD
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _WORD
        state ^= state >> 31
    return state


class Dropout:
    """Dropout of all LoRA pairs of one model; the trainer sets `row` before each row."""

    def __init__(self, rate: float, *, seed: int) -> None:
        self.rate = rate
        self.seed = seed
        self.row = 0
        self.active = False
        self._generators: dict[torch.device, torch.Generator] = {}

    @property
    def kept_share(self) -> float:
        """Share of inputs that are kept; what is kept must be divided by it."""
        return 1 - self._threshold / _LEVELS

    @property
    def _threshold(self) -> int:
        return round(self.rate * _LEVELS) if self.active else 0

    def mask(self, shape: torch.Size, site: int, *, device: torch.device) -> Tensor | None:
        """Mask of (seed, row, site), True where an input is dropped; None when inactive."""
        threshold = self._threshold
        if threshold == 0:
            return None
        generator = self._generators.setdefault(device, torch.Generator(device=device))
        generator.manual_seed(_mix(self.seed, self.row, site) >> 1)
        numel = shape.numel()
        draws = torch.empty((numel + 3) // 4, dtype=torch.int64, device=device)
        draws.random_(-(1 << 63), None, generator=generator)
        return draws.view(torch.int16)[:numel].view(shape) < threshold - _LEVELS // 2
