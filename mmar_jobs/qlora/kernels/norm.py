"""RMSNorm with the residual addition before it, and the gradient through both.

Not here: a gradient for the norm's weight, which is frozen. Arithmetic as in transformers'
Qwen3OmniMoeThinkerTextRMSNorm: statistics in fp32, rounded before the weight is applied.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _forward_kernel(
    residual, delta, weight, total, out, rms, width, eps, ADD: tl.constexpr, WIDTH: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, WIDTH)
    mask = at < width
    x = tl.load(residual + row * width + at, mask, 0)
    if ADD:
        x = x + tl.load(delta + row * width + at, mask, 0)
        tl.store(total + row * width + at, x, mask)
    x = x.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(x * x) / width + eps)
    tl.store(rms + row, inverse)
    normed = (x * inverse).to(out.dtype.element_ty)
    tl.store(out + row * width + at, normed * tl.load(weight + at, mask, 0), mask)


@triton.jit
def _backward_kernel(
    total, weight, rms, grad_out, grad_total, grad, width, ADD: tl.constexpr, WIDTH: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, WIDTH)
    mask = at < width
    inverse = tl.load(rms + row)
    normed = tl.load(total + row * width + at, mask, 0).to(tl.float32) * inverse
    weighted = tl.load(grad_out + row * width + at, mask, 0).to(tl.float32)
    weighted *= tl.load(weight + at, mask, 0).to(tl.float32)
    mean = tl.sum(weighted * normed) / width
    result = (weighted - normed * mean) * inverse
    if ADD:
        result += tl.load(grad_total + row * width + at, mask, 0).to(tl.float32)
    tl.store(grad + row * width + at, result.to(grad.dtype.element_ty), mask)


def add_rms_norm(
    residual_TH: Tensor, delta_TH: Tensor | None, weight_H: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return residual + delta (T, H), its norm times `weight_H` (T, H), and 1/rms (T,) in fp32.

    Without a delta the first is the residual itself.
    """
    num_tokens, width = residual_TH.shape
    total_TH = residual_TH if delta_TH is None else torch.empty_like(residual_TH)
    out_TH = torch.empty_like(residual_TH)
    rms_T = torch.empty(num_tokens, dtype=torch.float32, device=residual_TH.device)
    _forward_kernel[(num_tokens,)](
        residual_TH,
        residual_TH if delta_TH is None else delta_TH,
        weight_H,
        total_TH,
        out_TH,
        rms_T,
        width,
        eps,
        ADD=delta_TH is not None,
        WIDTH=triton.next_power_of_2(width),
        num_warps=8 if width >= 2048 else 4,
    )
    return total_TH, out_TH, rms_T


def rms_norm_backward(
    total_TH: Tensor,
    weight_H: Tensor,
    rms_T: Tensor,
    grad_out_TH: Tensor,
    grad_total_TH: Tensor | None,
) -> Tensor:
    """Gradient for what was normed, plus `grad_total_TH`, its gradient along the residual path."""
    num_tokens, width = total_TH.shape
    grad_TH = torch.empty_like(total_TH)
    _backward_kernel[(num_tokens,)](
        total_TH,
        weight_H,
        rms_T,
        grad_out_TH,
        grad_out_TH if grad_total_TH is None else grad_total_TH,
        grad_TH,
        width,
        ADD=grad_total_TH is not None,
        WIDTH=triton.next_power_of_2(width),
        num_warps=8 if width >= 2048 else 4,
    )
    return grad_TH
