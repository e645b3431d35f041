"""bitsandbytes' 8-bit AdamW without its wait for the GPU after every tensor.

Not here: the arithmetic, which is bitsandbytes' own. Its `step` synchronises once per parameter,
624 times a step on the 30B model, each an idle gap before the next kernel.
"""

from typing import Any

import torch
from bitsandbytes.optim.adamw import AdamW8bit


class SyncFreeAdamW8bit(AdamW8bit):
    """AdamW8bit; tensors of fewer than 4,096 numbers keep fp32 moments (`min_8bit_size`)."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient; waits only for paged state."""
        assert closure is None, "the loss is computed before the step"
        for group_index, group in enumerate(self.param_groups):
            for index, factor in enumerate(group["params"]):
                if factor.grad is None:
                    continue
                if not self.state[factor]:
                    self.init_state(group, factor, group_index, index)  # type: ignore[no-untyped-call]
                self.prefetch_state(factor)  # type: ignore[no-untyped-call]
                self.update_step(group, factor, group_index, index)  # type: ignore[no-untyped-call]
        if self.is_paged and torch.cuda.is_available():
            torch.cuda.synchronize()
