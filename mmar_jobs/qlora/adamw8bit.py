"""bitsandbytes' 8-bit AdamW, by a kernel of our own on the GPU.

State and codes are bitsandbytes', which also makes the state and runs on CPU. Its CUDA kernel took
96 ms for the 3.38 B factors of the 30B model on an H200, and it waits for the GPU after every one
of 624 tensors. Not here: the arithmetic (kernels/adamw8bit.py).
"""

from typing import Any

import torch
from bitsandbytes.optim.adamw import AdamW8bit
from torch import Tensor


class FusedAdamW8bit(AdamW8bit):
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
                if self._fits_kernel(factor):
                    self._update(group, factor)
                    continue
                self.prefetch_state(factor)  # type: ignore[no-untyped-call]
                self.update_step(group, factor, group_index, index)  # type: ignore[no-untyped-call]
        if self.is_paged and torch.cuda.is_available():
            torch.cuda.synchronize()

    def _fits_kernel(self, factor: Tensor) -> bool:
        return (
            factor.is_cuda
            and not self.is_paged
            and self.state[factor]["state1"].dtype == torch.uint8
            and factor.is_contiguous()
        )

    def _update(self, group: dict[str, Any], factor: Tensor) -> None:
        from mmar_jobs.qlora.kernels.adamw8bit import adamw8bit_  # noqa: PLC0415 - triton

        assert factor.grad is not None
        state = self.state[factor]
        state["step"] += 1
        adamw8bit_(
            factor,
            factor.grad.contiguous(),
            state,
            step=state["step"],
            learning_rate=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )
