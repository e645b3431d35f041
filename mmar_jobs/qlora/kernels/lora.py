"""The two thin products of LoRA: drop(x)·A^T before a linear layer, its gradient for x behind it.

Not here: the wide product (grouped.py), gradients of the factors (grouped_outer there).
"""

import triton
import triton.language as tl
from torch import Tensor

from mmar_jobs.qlora.dropout import DropKey
from mmar_jobs.qlora.kernels.dropout import KEYS, kept
from mmar_jobs.qlora.kernels.grouped import ROWS, Groups


@triton.jit(do_not_specialize=KEYS)
def _inner_kernel(
    x,
    token,
    factor,
    out,
    offsets,
    tile_expert,
    tile_row,
    num_in,
    num_inner,
    x_stride,
    out_stride,
    scale,
    key_low,
    key_high,
    threshold,
    GATHER: tl.constexpr,
    DROP: tl.constexpr,
    ROWS: tl.constexpr,
    INNER: tl.constexpr,
    IN: tl.constexpr,
):
    tile = tl.program_id(0)
    expert = tl.load(tile_expert + tile)
    if expert < 0:
        return
    row = tl.load(tile_row + tile) + tl.arange(0, ROWS)
    inside = row < tl.load(offsets + expert + 1)
    source = tl.load(token + row, inside, 0) if GATHER else tl.where(inside, row, 0)
    inner = tl.program_id(1) * INNER + tl.arange(0, INNER)
    in_range = inner < num_inner
    is_first = tl.program_id(1) == 0
    x_row = x + source.to(tl.int64)[:, None] * x_stride
    out_row = out + tl.where(inside, row, 0).to(tl.int64)[:, None] * out_stride
    factor_row = factor + (expert.to(tl.int64) * num_inner + inner[None, :]) * num_in
    total = tl.zeros((ROWS, INNER), tl.float32)
    for first in range(0, num_in, IN):
        at = first + tl.arange(0, IN)
        here = at < num_in
        x_tile = tl.load(x_row + at[None, :], inside[:, None] & here[None, :], 0)
        if is_first:
            tl.store(out_row + at[None, :], x_tile, inside[:, None] & here[None, :])
        if DROP:
            keep = kept(row[:, None] * num_in + at[None, :], key_low, key_high, threshold)
            x_tile = tl.where(keep, x_tile, 0.0).to(x_tile.dtype)
        factor_tile = tl.load(factor_row + at[:, None], here[:, None] & in_range[None, :], 0)
        total = tl.dot(x_tile, factor_tile.to(x_tile.dtype), total)
    target = out_row + num_in + inner[None, :]
    tl.store(target, (total * scale).to(out.dtype.element_ty), inside[:, None] & in_range[None, :])


def append_inner(
    x_TI: Tensor,
    a: Tensor,
    groups: Groups,
    *,
    num_rows: int,
    scale: float,
    drop: DropKey,
    token_S: Tensor | None = None,
) -> Tensor:
    """(S, I + G·R): row s is x[token s], then scale · drop(x[token s]) · A^T of its expert.

    `a` is (E, G·R, I). Without `token_S`, x holds the S rows themselves.
    """
    num_in, num_inner = x_TI.shape[1], a.shape[1]
    out = x_TI.new_empty(num_rows, num_in + num_inner)
    tile_inner = (
        128 if num_inner % 128 == 0 else max(16, min(64, triton.next_power_of_2(num_inner)))
    )
    _inner_kernel[(groups.num_tiles, triton.cdiv(num_inner, tile_inner))](
        x_TI,
        groups.offsets if token_S is None else token_S,
        a,
        out,
        groups.offsets,
        groups.tile_expert,
        groups.tile_row,
        num_in,
        num_inner,
        x_TI.stride(0),
        out.stride(0),
        scale,
        drop.low,
        drop.high,
        drop.threshold,
        GATHER=token_S is not None,
        DROP=drop.threshold > 0,
        ROWS=ROWS,
        INNER=tile_inner,
        IN=64,
        num_warps=8 if tile_inner == 128 else 4,
        num_stages=3,
    )
    return out


@triton.jit(do_not_specialize=KEYS)
def _add_grad_kernel(
    grad,
    factor,
    offsets,
    tile_expert,
    tile_row,
    num_in,
    num_inner,
    grad_stride,
    scale,
    key_low,
    key_high,
    threshold,
    DROP: tl.constexpr,
    ROWS: tl.constexpr,
    INNER: tl.constexpr,
    IN: tl.constexpr,
):
    tile = tl.program_id(0)
    expert = tl.load(tile_expert + tile)
    if expert < 0:
        return
    row = tl.load(tile_row + tile) + tl.arange(0, ROWS)
    inside = row < tl.load(offsets + expert + 1)
    at = tl.program_id(1) * IN + tl.arange(0, IN)
    here = at < num_in
    grad_row = grad + tl.where(inside, row, 0).to(tl.int64)[:, None] * grad_stride
    total = tl.zeros((ROWS, IN), tl.float32)
    for first in range(0, num_inner, INNER):
        inner = first + tl.arange(0, INNER)
        in_range = inner < num_inner
        inner_tile = tl.load(
            grad_row + num_in + inner[None, :], inside[:, None] & in_range[None, :], 0
        )
        factor_at = factor + (expert.to(tl.int64) * num_inner + inner[:, None]) * num_in
        factor_tile = tl.load(factor_at + at[None, :], in_range[:, None] & here[None, :], 0)
        total = tl.dot(inner_tile, factor_tile.to(inner_tile.dtype), total)
    total = total * scale
    if DROP:
        keep = kept(row[:, None] * num_in + at[None, :], key_low, key_high, threshold)
        total = tl.where(keep, total, 0.0)
    mask = inside[:, None] & here[None, :]
    total += tl.load(grad_row + at[None, :], mask, 0).to(tl.float32)
    tl.store(grad_row + at[None, :], total.to(grad.dtype.element_ty), mask)


def add_inner_grad(
    grad_SJ: Tensor, a: Tensor, groups: Groups, *, scale: float, drop: DropKey
) -> Tensor:
    """Fold the gradient of the inner columns into that of x, in place; returns a view (S, I).

    `grad_SJ` is (S, I + G·R), the gradient of what `append_inner` made: its first I columns become
    themselves plus scale · drop(inner · A).
    """
    num_inner, num_in = a.shape[1:]
    tile_inner = max(16, min(64, triton.next_power_of_2(num_inner)))
    _add_grad_kernel[(groups.num_tiles, triton.cdiv(num_in, 128))](
        grad_SJ,
        a,
        groups.offsets,
        groups.tile_expert,
        groups.tile_row,
        num_in,
        num_inner,
        grad_SJ.stride(0),
        scale,
        drop.low,
        drop.high,
        drop.threshold,
        DROP=drop.threshold > 0,
        ROWS=ROWS,
        INNER=tile_inner,
        IN=128,
        num_warps=8,
        num_stages=2,
    )
    return grad_SJ[:, :num_in]
