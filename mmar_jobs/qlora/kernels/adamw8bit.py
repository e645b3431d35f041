"""One pass of 8-bit AdamW: moments decoded, updated, encoded again, the parameter moved.

Arithmetic, state and codes are bitsandbytes' (csrc/kernels.cu, kOptimizerStatic8bit2StateBlockwise;
Dettmers et al. 2021), so that its CPU code goes on where this left off. Only the search for the
nearest code differs: bitsandbytes halves an interval eight times, here it is computed, since its
codes are evenly spaced within each power of ten. Not here: which parameters (qlora/adamw8bit.py).
"""

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 256  # numbers that share a scale
_BLOCKS = 4
# Guards a block of zeros. A smaller constant would make Triton compute in fp64, ten times slower.
_TINY: tl.constexpr = tl.constexpr(1e-30)


@triton.jit
def _magnitude_code(y, SIGNED: tl.constexpr):
    """Rank of the code nearest to y in [0, 1] among those above zero, -1 for zero.

    Decade d, 0 to 6, holds n = 2^d codes (twice as many without a sign) in the middles of n equal
    parts of (10^(d-7), 10^(d-6)]; one more code stands at 1. Logarithms and powers are a few units'
    work, products and comparisons all of them's: y is brought into the top decade by 4, 2 and 1.
    """
    per_decade: tl.constexpr = 1.0 if SIGNED else 2.0
    lowest: tl.constexpr = 1e-6 * (0.1 + 0.45 / per_decade)
    place, count = y, 64.0 * per_decade
    is_low = place <= 1e-4
    place, count = tl.where(is_low, place * 1e4, place), tl.where(is_low, count * 0.0625, count)
    is_low = place <= 1e-2
    place, count = tl.where(is_low, place * 1e2, place), tl.where(is_low, count * 0.25, count)
    is_low = place <= 1e-1
    place, count = tl.where(is_low, place * 10, place), tl.where(is_low, count * 0.5, count)
    at = (place - 0.1) * (1.0 / 0.9) * count
    # Under 0.2 the highest code of the decade below is nearer, whose rank is one less.
    part = tl.where(at < 0.2, -1.0, tl.minimum(tl.floor(at), count - 1.0))
    rank = (count - per_decade + part).to(tl.int32)
    rank = tl.where(y > 1.0 - 0.225 / (64.0 * per_decade), rank + 1, rank)
    return tl.where(y > 0.5 * lowest, tl.maximum(rank, 0), -1)


@triton.jit(do_not_specialize=["step_size", "eps", "decay"])
def _adamw8bit_kernel(
    parameter,
    grad,
    moment,
    square,
    moment_scale,
    square_scale,
    moment_map,
    square_map,
    numel,
    beta1,
    beta2,
    step_size,
    eps,
    decay,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    at = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = at < numel
    has_block = block * BLOCK < numel
    g = tl.load(grad + at, mask, 0).to(tl.float32)
    scale1 = tl.load(moment_scale + block, has_block, 0)[:, None]
    scale2 = tl.load(square_scale + block, has_block, 0)[:, None]
    code1 = tl.load(moment + at, mask, 127).to(tl.int32)
    code2 = tl.load(square + at, mask, 0).to(tl.int32)
    m = tl.load(moment_map + code1) * scale1 * beta1 + (1.0 - beta1) * g
    v = tl.load(square_map + code2) * scale2 * beta2 + (1.0 - beta2) * g * g
    m, v = tl.where(mask, m, 0.0), tl.where(mask, v, 0.0)
    scale1, scale2 = tl.max(tl.abs(m), 1), tl.max(v, 1)
    p = tl.load(parameter + at, mask, 0)
    p = (p + step_size * (m / (tl.sqrt(v) + eps))) * decay
    tl.store(parameter + at, p, mask)
    tl.store(moment_scale + block, scale1, has_block)
    tl.store(square_scale + block, scale2, has_block)
    inverse1, inverse2 = 1.0 / tl.maximum(scale1, _TINY), 1.0 / tl.maximum(scale2, _TINY)
    rank1 = _magnitude_code(tl.abs(m) * inverse1[:, None], SIGNED=True)
    rank2 = _magnitude_code(v * inverse2[:, None], SIGNED=False)
    # 127 negative codes, zero, 127 positive ones, and 1 that has no negative.
    code1 = tl.where(m < 0, 126 - tl.minimum(rank1, 126), 128 + rank1)
    code1 = tl.where(rank1 < 0, 127, code1)
    tl.store(moment + at, code1.to(tl.uint8), mask)
    tl.store(square + at, (1 + rank2).to(tl.uint8), mask)


def adamw8bit_(
    parameter: Tensor,
    grad: Tensor,
    state: dict[str, Tensor],
    *,
    step: int,
    learning_rate: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Update an fp32 parameter and its state in place; `step` counts from 1.

    `state` holds bitsandbytes' state1, state2, absmax1, absmax2, qmap1 and qmap2 of blocks of 256.
    """
    correction1, correction2 = 1 - betas[0] ** step, (1 - betas[1] ** step) ** 0.5
    _adamw8bit_kernel[(triton.cdiv(parameter.numel(), _BLOCK * _BLOCKS),)](
        parameter,
        grad,
        state["state1"],
        state["state2"],
        state["absmax1"],
        state["absmax2"],
        state["qmap1"],
        state["qmap2"],
        parameter.numel(),
        betas[0],
        betas[1],
        -learning_rate * correction2 / correction1,
        eps * correction2,
        1 - learning_rate * weight_decay,
        BLOCKS=_BLOCKS,
        BLOCK=_BLOCK,
        num_warps=8,
    )
