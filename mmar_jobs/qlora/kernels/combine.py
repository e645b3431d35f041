"""Adding up the K rows of each token, found by their places among the sorted rows.

A gather, not a scatter: atomics would give other bits on every run. Not here: sorting (routing.py).
"""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _combine_kernel(
    rows,
    place,
    out,
    width,
    row_stride,
    EXPERTS_PER_TOKEN: tl.constexpr,
    WIDTH: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    mask = at < width
    total = tl.zeros((WIDTH,), tl.float32)
    for index in tl.static_range(EXPERTS_PER_TOKEN):
        row = tl.load(place + token * EXPERTS_PER_TOKEN + index).to(tl.int64)
        total += tl.load(rows + row * row_stride + at, mask, 0).to(tl.float32)
    tl.store(out + token * width + at, total.to(out.dtype.element_ty), mask)


def combine(rows_SH: Tensor, place_TK: Tensor) -> Tensor:
    """(T, H): the sum of rows place[t, 0] to place[t, K-1], in fp32. Rows may lie apart."""
    width = rows_SH.shape[1]
    num_tokens, experts_per_token = place_TK.shape
    out_TH = rows_SH.new_empty(num_tokens, width)
    block = min(2048, triton.next_power_of_2(width))
    _combine_kernel[(num_tokens, triton.cdiv(width, block))](
        rows_SH,
        place_TK,
        out_TH,
        width,
        rows_SH.stride(0),
        EXPERTS_PER_TOKEN=experts_per_token,
        WIDTH=block,
        num_warps=8 if block >= 2048 else 4,
    )
    return out_TH
