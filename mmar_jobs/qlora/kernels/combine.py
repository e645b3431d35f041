"""Adding up the K rows of each token, found by their places among the sorted rows.

A gather, not a scatter: atomics would give other bits on every run. The gradient that came through
LoRA's dropout joins on the way, so that no pass of its own over the rows is needed for it. Not
here: sorting (qlora/fused.py).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmar_jobs.qlora.dropout import NOTHING_DROPPED, DropKey
from mmar_jobs.qlora.kernels.dropout import KEYS, kept, words_of


@triton.jit(do_not_specialize=KEYS)
def _combine_kernel(
    rows,
    extra,
    place,
    out,
    width,
    row_stride,
    scale,
    key,
    threshold,
    EXTRA: tl.constexpr,
    DROP: tl.constexpr,
    PLACES: tl.constexpr,
    EXPERTS_PER_TOKEN: tl.constexpr,
    WIDTH: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * WIDTH
    at = first + tl.arange(0, WIDTH)[None, :]
    mask = at < width
    low = tl.load(key) if DROP else 0
    high = tl.load(key + 1) if DROP else 0
    total = tl.zeros((1, WIDTH), tl.float32)
    for index in tl.static_range(EXPERTS_PER_TOKEN):
        row = tl.load(place + token * EXPERTS_PER_TOKEN + index).to(tl.int64) if PLACES else token
        total += tl.load(rows + row * row_stride + at, mask, 0).to(tl.float32)
        if EXTRA:
            part = tl.load(extra + row * width + at, mask, 0).to(tl.float32) * scale
            if DROP:
                first_index = (row * width + first).to(tl.int32) + tl.zeros((1, 1), tl.int32)
                keep = kept(first_index, low, high, threshold, WIDTH)
                part = tl.where(keep, part, 0.0)
            total += part
    tl.store(out + token * width + at, total.to(out.dtype.element_ty), mask)


def combine(
    rows_SH: Tensor,
    place_TK: Tensor | None,
    *,
    extra_SH: Tensor | None = None,
    scale: float = 1.0,
    drop: DropKey = NOTHING_DROPPED,
) -> Tensor:
    """(T, H): the sum of rows place[t, 0] to place[t, K-1], in fp32; rows may lie apart.

    With `extra_SH`, a row is rows[s] + scale · drop(extra[s]). Without places, row t is token t's.
    """
    width = rows_SH.shape[1]
    num_tokens, experts_per_token = (rows_SH.shape[0], 1) if place_TK is None else place_TK.shape
    out_TH = torch.empty(num_tokens, width, dtype=rows_SH.dtype, device=rows_SH.device)
    block = min(2048, triton.next_power_of_2(width))
    _combine_kernel[(num_tokens, triton.cdiv(width, block))](
        rows_SH,
        rows_SH if extra_SH is None else extra_SH,
        rows_SH if place_TK is None else place_TK,
        out_TH,
        width,
        rows_SH.stride(0),
        scale,
        words_of(drop, rows_SH),
        drop.threshold,
        EXTRA=extra_SH is not None,
        DROP=drop.threshold > 0,
        PLACES=place_TK is not None,
        EXPERTS_PER_TOKEN=experts_per_token,
        WIDTH=block,
        num_warps=8 if block >= 2048 else 4,
    )
    return out_TH
