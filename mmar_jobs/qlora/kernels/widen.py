"""The weight side of a product that holds LoRA: NF4 codes decoded, B to their right, one launch.

A step queues some 400 of these, and at 4,096 tokens a row the GPU would wait for the host if each
were a launch per weight and per factor. Not here: quantising (qlora/nf4.py), the product
(grouped.py). Layout and arithmetic are those of bitsandbytes 0.50 (csrc/kernels.cu,
kDequantizeBlockwise): two values a byte, the high nibble first, blocks of 64, the blocks' scales
themselves in 8 bits in blocks of 256.

Legend: E experts, O out-features, I in-features, J = I plus the inner columns of all branches.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmar_jobs.qlora.nf4 import BLOCK, Nf4Weight

_BLOCKS = 64  # NF4 blocks a program: 4,096 weights
_OUT = 64  # rows of B a program


@triton.jit
def _decode(
    first_block,
    packed,
    absmax,
    absmax_scale,
    absmax_code,
    offset,
    code,
    out,
    num_blocks,
    out_stride_e,
    out_stride_o,
    WIDTH: tl.constexpr,
    NUM_OUT: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    # Words of four bytes: the eight weights of one are what a thread writes at once.
    word = first_block * 8 + tl.arange(0, BLOCKS * 8)
    block = word // 8
    inside = block < num_blocks
    scale = tl.load(absmax_code + tl.load(absmax + block, inside, 0).to(tl.int32))
    scale = scale * tl.load(absmax_scale + block // 256, inside, 0) + tl.load(offset)
    place = tl.arange(0, 8)[None, :]
    shift = (place // 2) * 8 + (1 - place % 2) * 4
    nibble = (tl.load(packed + word, inside, 0)[:, None] >> shift) & 15
    weights = tl.load(code + nibble) * scale[:, None]
    row, column = word // (WIDTH // 8), word % (WIDTH // 8) * 8
    target = out + (row // NUM_OUT).to(tl.int64) * out_stride_e
    target += (row % NUM_OUT) * out_stride_o + column
    tl.store(target[:, None] + place, weights.to(out.dtype.element_ty), inside[:, None])


@triton.jit
def _place(
    expert,
    first_row,
    b,
    next_b,
    out,
    num_out,
    branch_out,
    rank,
    num_inner,
    first_column,
    out_stride_e,
    out_stride_o,
    OUT: tl.constexpr,
    INNER: tl.constexpr,
):
    row = (first_row + tl.arange(0, OUT))[:, None]
    column = tl.arange(0, INNER)[None, :]
    is_next = row >= branch_out
    own_column = column - first_column - tl.where(is_next, rank, 0)
    own = (own_column >= 0) & (own_column < rank) & (row < num_out)
    at = (expert * branch_out + row - tl.where(is_next, branch_out, 0)) * rank + own_column
    factor = tl.load(b + at, own & (row < branch_out), 0)
    factor = tl.where(is_next, tl.load(next_b + at, own & is_next, 0), factor)
    target = out + expert * out_stride_e + row * out_stride_o + column
    mask = (row < num_out) & (column < num_inner)
    tl.store(target, factor.to(out.dtype.element_ty), mask)


@triton.jit
def _widen_kernel(
    packed,
    absmax,
    absmax_scale,
    absmax_code,
    offset,
    code,
    b,
    next_b,
    out,
    num_decoding,
    num_blocks,
    branch_out,
    rank,
    num_inner,
    first_column,
    out_stride_e,
    out_stride_o,
    WIDTH: tl.constexpr,
    NUM_OUT: tl.constexpr,
    BLOCKS: tl.constexpr,
    OUT: tl.constexpr,
    INNER: tl.constexpr,
    DECODES: tl.constexpr,
):
    program = tl.program_id(0)
    if DECODES:  # noqa: SIM102 - decided when compiling, what is inside when running
        if program < num_decoding:
            _decode(
                program * BLOCKS,
                packed,
                absmax,
                absmax_scale,
                absmax_code,
                offset,
                code,
                out,
                num_blocks,
                out_stride_e,
                out_stride_o,
                WIDTH,
                NUM_OUT,
                BLOCKS,
            )
    if program >= num_decoding:
        tile = program - num_decoding
        tiles = tl.cdiv(NUM_OUT, OUT)
        _place(
            (tile // tiles).to(tl.int64),
            (tile % tiles) * OUT,
            b,
            next_b,
            out + WIDTH,
            NUM_OUT,
            branch_out,
            rank,
            num_inner,
            first_column,
            out_stride_e,
            out_stride_o,
            OUT,
            INNER,
        )


def widen(
    weight: Tensor | Nf4Weight, bs: Sequence[Tensor], out_EOJ: Tensor, *, first_column: int
) -> None:
    """Write a weight (E, O, I) or (O, I) into `out_EOJ[..., :I]` and its branches' Bs beside it.

    `bs` are one or two of (E, O_g, R) or (O_g, R), below one another: the first in the inner
    columns from `first_column` on, the next R further; zero is written everywhere else. Columns of
    a row must be neighbours.
    """
    num_experts, num_out, total = out_EOJ.shape
    width, branch_out, rank = weight.shape[-1], bs[0].shape[-2], bs[0].shape[-1]
    assert len(bs) * branch_out == num_out, "branches share the outputs evenly"
    if isinstance(weight, Nf4Weight) and width % BLOCK:  # a block may cross rows
        weight = weight.dequantize(out_EOJ.dtype)
    if isinstance(weight, Nf4Weight):
        num_blocks = weight.numel() // BLOCK
        codes = (
            *(
                weight.packed.view(torch.int32),
                weight.absmax,
                weight.absmax_scale,
                weight.absmax_code,
                weight.offset,
            ),
            _code(out_EOJ.device),
        )
    else:
        num_blocks = 0
        codes = (out_EOJ,) * 6  # nothing is decoded
        out_EOJ[..., :width].copy_(weight)
    num_decoding = triton.cdiv(num_blocks, _BLOCKS)
    _widen_kernel[(num_decoding + num_experts * triton.cdiv(num_out, _OUT),)](
        *codes,
        bs[0],
        bs[-1],
        out_EOJ,
        num_decoding,
        num_blocks,
        branch_out,
        rank,
        total - width,
        first_column,
        out_EOJ.stride(0),
        out_EOJ.stride(1),
        WIDTH=width,
        NUM_OUT=num_out,
        BLOCKS=_BLOCKS,
        OUT=_OUT,
        INNER=triton.next_power_of_2(total - width),
        DECODES=num_decoding > 0,
        num_warps=4,
        enable_fp_fusion=False,  # bitsandbytes rounds between the product and the sum
    )


_CODES: dict[torch.device, Tensor] = {}


def _code(device: torch.device) -> Tensor:
    """The sixteen values of NF4 (Dettmers et al. 2023), kept per device."""
    if device not in _CODES:
        from bitsandbytes.functional import get_4bit_type  # noqa: PLC0415 - where NF4 is used

        _CODES[device] = get_4bit_type("nf4", device=device)
    return _CODES[device]
