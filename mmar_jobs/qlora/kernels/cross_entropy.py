"""Softmax cross-entropy over a chunk of logits, which its own gradient replaces.

Not here: the lm_head (qlora/loss.py). Two passes over a row: the first finds its maximum and sum,
the second writes the gradient; logits are never held in fp32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _cross_entropy_kernel(logits, target, coefficient, nll, num_classes, CLASSES: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * num_classes
    at = tl.arange(0, CLASSES)
    highest = tl.full((CLASSES,), -1e38, tl.float32)
    total = tl.zeros((CLASSES,), tl.float32)
    for first in range(0, num_classes, CLASSES):
        x = tl.load(start + first + at, first + at < num_classes, float("-inf")).to(tl.float32)
        higher = tl.maximum(highest, x)
        total = total * tl.exp(highest - higher) + tl.exp(x - higher)
        highest = higher
    peak = tl.max(highest)
    log_sum = peak + tl.log(tl.sum(total * tl.exp(highest - peak)))
    label = tl.load(target + row)
    scale = tl.load(coefficient + row)
    tl.store(nll + row, log_sum - tl.load(start + label).to(tl.float32))
    tl.debug_barrier()
    for first in range(0, num_classes, CLASSES):
        mask = first + at < num_classes
        x = tl.load(start + first + at, mask, float("-inf")).to(tl.float32)
        grad = (tl.exp(x - log_sum) - tl.where(first + at == label, 1.0, 0.0)) * scale
        tl.store(start + first + at, grad.to(logits.dtype.element_ty), mask)


def cross_entropy_(logits_CV: Tensor, target_C: Tensor, coefficient_C: Tensor) -> Tensor:
    """Each row's loss in nats, (C,) fp32; `logits_CV` becomes coefficient · d loss / d logits."""
    num_rows, num_classes = logits_CV.shape
    nll_C = torch.empty(num_rows, dtype=torch.float32, device=logits_CV.device)
    _cross_entropy_kernel[(num_rows,)](
        logits_CV,
        target_C,
        coefficient_C,
        nll_C,
        num_classes,
        CLASSES=min(4096, triton.next_power_of_2(num_classes)),
        num_warps=8,
    )
    return nll_C
