"""Decoding NF4 weights into the left columns of a wider matrix, whose right columns hold LoRA's B.

Not here: quantising (qlora/nf4.py). Layout and arithmetic are those of bitsandbytes 0.50
(csrc/kernels.cu, kDequantizeBlockwise): two values a byte, the high nibble first, blocks of 64, the
blocks' scales themselves in 8 bits in blocks of 256.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmar_jobs.qlora.nf4 import Nf4Weight

_BLOCKS = 64  # NF4 blocks a program: 4,096 weights


@triton.jit
def _decode_kernel(
    packed,
    absmax,
    absmax_scale,
    absmax_code,
    offset,
    code,
    out,
    num_blocks,
    width,
    out_stride,
    BLOCKS: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    inside = block < num_blocks
    scale = tl.load(absmax_code + tl.load(absmax + block, inside, 0).to(tl.int32))
    scale = scale * tl.load(absmax_scale + block // 256, inside, 0) + tl.load(offset)
    byte = tl.load(packed + block[:, None] * 32 + tl.arange(0, 32)[None, :], inside[:, None], 0)
    high = tl.load(code + (byte >> 4).to(tl.int32)) * scale[:, None]
    low = tl.load(code + (byte & 15).to(tl.int32)) * scale[:, None]
    first = block * 64
    target = out + (first // width) * out_stride + first % width
    weights = tl.interleave(high, low).to(out.dtype.element_ty)
    tl.store(target[:, None] + tl.arange(0, 64)[None, :], weights, inside[:, None])


def decode_nf4(weight: Nf4Weight, out_EOJ: Tensor) -> None:
    """Write the weights into `out_EOJ[..., :I]`, (E, O, J >= I) with rows of equal distance.

    I must be a multiple of 64.
    """
    width = weight.shape[-1]
    num_blocks = weight.numel() // 64
    _decode_kernel[(triton.cdiv(num_blocks, _BLOCKS),)](
        weight.packed,
        weight.absmax,
        weight.absmax_scale,
        weight.absmax_code,
        weight.offset,
        _code(out_EOJ.device),
        out_EOJ,
        num_blocks,
        width,
        out_EOJ.stride(-2),
        BLOCKS=_BLOCKS,
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
