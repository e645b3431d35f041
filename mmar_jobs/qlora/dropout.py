"""Dropout whose masks are a function of (seed, row, site), so that resume and recompute repeat them.

Not here: any random state. Nothing has to be saved in a checkpoint but the row number, and a layer that
is recomputed for its gradient draws the mask that it drew the first time.
"""

import torch
from torch import Tensor

_LEVELS = 1 << 16  # masks compare 16-bit draws: four masks from one 64-bit draw, p exact to 1.5e-5
_MIX = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


def _mix(*numbers: int) -> int:
    """Splitmix64 over the numbers (Steele et al. 2014): neighbouring inputs give unrelated seeds."""
    state = 0
    for number in numbers:
        state = (state + number + _MIX) & _WORD
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _WORD
        state ^= state >> 31
    return state


class Dropout:
    """Dropout shared by all LoRA pairs of one model; `row` is set by the trainer before each row."""

    def __init__(self, rate: float, *, seed: int) -> None:
        self.rate = rate
        self.seed = seed
        self.row = 0
        self.active = False
        self._generators: dict[torch.device, torch.Generator] = {}

    def __call__(self, x: Tensor, site: int) -> Tensor:
        """Drop elements of `x` (any shape) by the mask of (seed, row, site); identity when inactive."""
        threshold = round(self.rate * _LEVELS)
        if not self.active or threshold == 0:
            return x
        return x * self._scaled_mask(x, site, threshold)

    def _scaled_mask(self, x: Tensor, site: int, threshold: int) -> Tensor:
        generator = self._generators.setdefault(x.device, torch.Generator(device=x.device))
        generator.manual_seed(_mix(self.seed, self.row, site) >> 1)
        draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device)
        draws.random_(-(1 << 63), None, generator=generator)
        kept = draws.view(torch.int16)[: x.numel()].view(x.shape) >= threshold - _LEVELS // 2
        return kept.to(x.dtype).mul_(_LEVELS / (_LEVELS - threshold))
