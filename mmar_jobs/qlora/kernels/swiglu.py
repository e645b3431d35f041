"""The experts' activation, silu(gate) · up times the routing weight, and its gradients.

The routing weight is applied here instead of to the down projection's output: a third of the
columns, and the gradient of the weight needs no output kept. Not here: the projections.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmar_jobs.qlora.dropout import DropKey
from mmar_jobs.qlora.kernels.dropout import KEYS, kept, words_of

_ROWS = 4


@triton.jit(do_not_specialize=["num_rows"])
def _forward_kernel(
    gate_up,
    weight,
    out,
    num_rows,
    width,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    mask = (row < num_rows)[:, None] & (at < width)[None, :]
    source = gate_up + row[:, None] * (2 * width) + at[None, :]
    gate = tl.load(source, mask, 0).to(tl.float32)
    up = tl.load(source + width, mask, 0).to(tl.float32)
    scale = tl.load(weight + row, row < num_rows, 0).to(tl.float32)
    inner = gate * tl.sigmoid(gate) * up * scale[:, None]
    tl.store(out + row[:, None] * width + at[None, :], inner.to(out.dtype.element_ty), mask)


def swiglu(gate_up_S2I: Tensor, weight_S: Tensor) -> Tensor:
    """Weight · silu(gate) · up; (S, 2I) with gate's columns first, (S,) -> (S, I)."""
    num_rows, width = gate_up_S2I.shape[0], gate_up_S2I.shape[1] // 2
    out_SI = gate_up_S2I.new_empty(num_rows, width)
    block = min(256, triton.next_power_of_2(width))
    _forward_kernel[(triton.cdiv(num_rows, _ROWS), triton.cdiv(width, block))](
        gate_up_S2I, weight_S, out_SI, num_rows, width, ROWS=_ROWS, WIDTH=block, num_warps=4
    )
    return out_SI


@triton.jit(do_not_specialize=["num_rows", *KEYS])
def _backward_kernel(
    gate_up,
    weight,
    grad,
    extra,
    grad_gate_up,
    grad_weight,
    num_rows,
    width,
    grad_stride,
    extra_scale,
    key,
    threshold,
    DROP: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    scale = tl.load(weight + row, row < num_rows, 0).to(tl.float32)[:, None]
    low = tl.load(key) if DROP else 0
    high = tl.load(key + 1) if DROP else 0
    dot = tl.zeros((ROWS,), tl.float32)
    for first in range(0, width, WIDTH):
        at = first + tl.arange(0, WIDTH)
        mask = (row < num_rows)[:, None] & (at < width)[None, :]
        source = row[:, None] * (2 * width) + at[None, :]
        gate = tl.load(gate_up + source, mask, 0).to(tl.float32)
        up = tl.load(gate_up + source + width, mask, 0).to(tl.float32)
        grad_inner = tl.load(grad + row[:, None] * grad_stride + at[None, :], mask, 0)
        part = tl.load(extra + row[:, None] * width + at[None, :], mask, 0)
        part = part.to(tl.float32) * extra_scale
        if DROP:
            first_index = (row[:, None] * width + first).to(tl.int32)
            part = tl.where(kept(first_index, low, high, threshold, WIDTH), part, 0.0)
        grad_inner = grad_inner.to(tl.float32) + part
        sigmoid = tl.sigmoid(gate)
        silu = gate * sigmoid
        dot += tl.sum(grad_inner * silu * up, 1)
        weighted = grad_inner * scale
        grad_gate = weighted * up * sigmoid * (1 + gate * (1 - sigmoid))
        element = grad_gate_up.dtype.element_ty
        tl.store(grad_gate_up + source, grad_gate.to(element), mask)
        tl.store(grad_gate_up + source + width, (weighted * silu).to(element), mask)
    tl.store(grad_weight + row, dot.to(grad_weight.dtype.element_ty), row < num_rows)


def swiglu_backward(
    gate_up_S2I: Tensor,
    weight_S: Tensor,
    grad_SI: Tensor,
    *,
    extra_SI: Tensor,
    scale: float,
    drop: DropKey,
) -> tuple[Tensor, Tensor]:
    """Gradients for `swiglu`'s inputs, (S, 2I) and (S,) fp32, from that of its output.

    That one is grad + scale · drop(extra): what came through the weights, and through LoRA. Rows of
    `grad_SI` may lie apart.
    """
    num_rows, width = gate_up_S2I.shape[0], gate_up_S2I.shape[1] // 2
    grad_gate_up_S2I = torch.empty_like(gate_up_S2I)
    grad_weight_S = torch.empty_like(weight_S, dtype=torch.float32)
    _backward_kernel[(triton.cdiv(num_rows, _ROWS),)](
        gate_up_S2I,
        weight_S,
        grad_SI,
        extra_SI,
        grad_gate_up_S2I,
        grad_weight_S,
        num_rows,
        width,
        grad_SI.stride(0),
        scale,
        words_of(drop, grad_SI),
        drop.threshold,
        DROP=drop.threshold > 0,
        ROWS=_ROWS,
        WIDTH=min(256, triton.next_power_of_2(width)),
        num_warps=4,
    )
    return grad_gate_up_S2I, grad_weight_S
