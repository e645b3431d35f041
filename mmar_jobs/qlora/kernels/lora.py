"""What makes a linear layer's product hold LoRA on the side of its input: drop(x)·A^T beside it.

Not here: B beside the weight (widen.py), the wide product (grouped.py), gradients of the factors
(grouped_outer there).
"""

import triton
import triton.language as tl
from torch import Tensor

from mmar_jobs.qlora.dropout import DropKey
from mmar_jobs.qlora.kernels.dropout import KEYS, kept, words_of
from mmar_jobs.qlora.kernels.grouped import ROWS, Groups

_COLUMNS = 1024


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
    key,
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
    low = tl.load(key) if DROP else 0
    high = tl.load(key + 1) if DROP else 0
    total = tl.zeros((ROWS, INNER), tl.float32)
    for first in range(0, num_in, IN):
        at = first + tl.arange(0, IN)
        here = at < num_in
        x_tile = tl.load(x_row + at[None, :], inside[:, None] & here[None, :], 0)
        if is_first:
            tl.store(out_row + at[None, :], x_tile, inside[:, None] & here[None, :])
        if DROP:
            keep = kept(row[:, None] * num_in + first, low, high, threshold, IN)
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
    # In fp32 Triton 3.6 multiplies the wide tile wrongly on SM90; training is in bf16.
    is_wide = num_inner % 128 == 0 and x_TI.dtype.itemsize == 2
    tile_inner = 128 if is_wide else max(16, min(64, triton.next_power_of_2(num_inner)))
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
        words_of(drop, x_TI),
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
def _drop_kernel(x, out, width, x_stride, scale, key, threshold, COLUMNS: tl.constexpr):
    row, first = tl.program_id(0), tl.program_id(1) * COLUMNS
    at = first + tl.arange(0, COLUMNS)[None, :]
    part = tl.load(x + row.to(tl.int64) * x_stride + at, at < width, 0).to(tl.float32) * scale
    first_index = row * width + first + tl.zeros((1, 1), tl.int32)
    low, high = tl.load(key), tl.load(key + 1)
    part = tl.where(kept(first_index, low, high, threshold, COLUMNS), part, 0.0)
    tl.store(out + row.to(tl.int64) * width + at, part.to(out.dtype.element_ty), at < width)


def dropped(x_TI: Tensor, *, scale: float, drop: DropKey) -> Tensor:
    """Scale · drop(x), (T, I); rows of x may lie apart."""
    if drop.threshold == 0:
        return x_TI * scale
    num_rows, width = x_TI.shape
    out_TI = x_TI.new_empty(num_rows, width)
    block = min(_COLUMNS, triton.next_power_of_2(width))
    _drop_kernel[(num_rows, triton.cdiv(width, block))](
        x_TI,
        out_TI,
        width,
        x_TI.stride(0),
        scale,
        words_of(drop, x_TI),
        drop.threshold,
        COLUMNS=block,
        num_warps=4,
    )
    return out_TI
