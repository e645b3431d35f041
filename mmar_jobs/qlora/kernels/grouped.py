"""Matrix products over rows sorted by expert: rows times each expert's matrix, and their gradients.

Not here: LoRA, which is columns of the same product (qlora/fused.py says how).

`grouped_matmul` is torch's grouped_mm (CUTLASS) on SM90 and newer, and a kernel of our own on SM80,
where torch's loops over experts and waits for each.
"""

from dataclasses import dataclass
from functools import cache
from typing import Final, TypeAlias

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from mmar_jobs.qlora.dropout import NOTHING_DROPPED, DropKey
from mmar_jobs.qlora.kernels.dropout import KEYS, kept, words_of

ROWS = 128  # rows a tile: half of it is masked where an expert has few
SM90: Final = (9, 0)

# Out-features and in-features of a tile, warps, pipeline stages.
Tile: TypeAlias = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Groups:
    """Which rows belong to which expert: `offsets` (E + 1,) int32, and the tiles that cover them.

    `tile_expert` is -1 where a tile is not needed; `tile_row` is a tile's first row.
    """

    offsets: Tensor
    tile_expert: Tensor
    tile_row: Tensor

    @property
    def num_experts(self) -> int:
        """E."""
        return self.offsets.numel() - 1

    @property
    def num_tiles(self) -> int:
        """Tiles to launch, needed or not: their number is known without asking the GPU."""
        return self.tile_expert.numel()


@triton.jit
def _tiles_kernel(offsets, tile_expert, tile_row, ROWS: tl.constexpr):
    expert = tl.program_id(0)
    before = 0
    for earlier in range(expert):
        count = tl.load(offsets + earlier + 1) - tl.load(offsets + earlier)
        before += (count + ROWS - 1) // ROWS
    start, end = tl.load(offsets + expert), tl.load(offsets + expert + 1)
    for tile in range((end - start + ROWS - 1) // ROWS):
        tl.store(tile_expert + before + tile, expert)
        tl.store(tile_row + before + tile, start + tile * ROWS)


def group_rows(offsets: Tensor, num_rows: int) -> Groups:
    """Cut the rows of each expert into tiles, without waiting for the GPU."""
    num_experts = offsets.numel() - 1
    max_tiles = num_rows // ROWS + num_experts
    tile_expert = torch.full((max_tiles,), -1, dtype=torch.int32, device=offsets.device)
    tile_row = torch.zeros_like(tile_expert)
    _tiles_kernel[(num_experts,)](offsets, tile_expert, tile_row, ROWS=ROWS, num_warps=1)
    return Groups(offsets, tile_expert, tile_row)


@triton.jit
def _matmul_kernel(
    x,
    weight,
    out,
    offsets,
    tile_expert,
    tile_row,
    num_in,
    num_out,
    x_stride,
    out_stride,
    weight_stride_e,
    weight_stride_out,
    weight_stride_in,
    ROWS: tl.constexpr,
    OUT: tl.constexpr,
    IN: tl.constexpr,
):
    tile = tl.program_id(0) // tl.cdiv(num_out, OUT)
    first_out = (tl.program_id(0) % tl.cdiv(num_out, OUT)) * OUT
    expert = tl.load(tile_expert + tile)
    if expert < 0:
        return
    row = tl.load(tile_row + tile) + tl.arange(0, ROWS)
    inside = row < tl.load(offsets + expert + 1)
    column = first_out + tl.arange(0, OUT)
    in_range = column < num_out
    row_64 = tl.where(inside, row, 0).to(tl.int64)
    at = tl.arange(0, IN)
    x_at = x + row_64[:, None] * x_stride + at[None, :]
    weight_at = weight + expert.to(tl.int64) * weight_stride_e
    weight_at += column[None, :] * weight_stride_out + at[:, None] * weight_stride_in
    total = tl.zeros((ROWS, OUT), tl.float32)
    for step in range(tl.cdiv(num_in, IN)):
        here = at < num_in - step * IN
        x_tile = tl.load(x_at, here[None, :], 0)
        weight_tile = tl.load(weight_at, here[:, None] & in_range[None, :], 0)
        total = tl.dot(x_tile, weight_tile, total)
        x_at += IN
        weight_at += IN * weight_stride_in
    out_at = out + row_64[:, None] * out_stride + column[None, :]
    tl.store(out_at, total.to(out.dtype.element_ty), inside[:, None] & in_range[None, :])


def triton_grouped_matmul(
    x_SI: Tensor, weight_EIO: Tensor, groups: Groups, *, tile: Tile | None = None
) -> Tensor:
    """`grouped_matmul` in Triton; any strides of the weight, unit stride of the rows' columns.

    `tile` is that of the device unless given.
    """
    num_rows, num_in = x_SI.shape
    num_out = weight_EIO.shape[-1]
    out_SO = x_SI.new_empty(num_rows, num_out)
    tile_out, tile_in, warps, stages = tile or tile_of(_capability(x_SI.device), x_SI.dtype)
    _matmul_kernel[(groups.num_tiles * triton.cdiv(num_out, tile_out),)](
        x_SI,
        weight_EIO,
        out_SO,
        groups.offsets,
        groups.tile_expert,
        groups.tile_row,
        num_in,
        num_out,
        x_SI.stride(0),
        out_SO.stride(0),
        weight_EIO.stride(0),
        weight_EIO.stride(2),
        weight_EIO.stride(1),
        ROWS=ROWS,
        OUT=tile_out,
        IN=tile_in,
        num_warps=warps,
        num_stages=stages,
    )
    return out_SO


@cache
def _capability(device: torch.device) -> tuple[int, int] | None:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def tile_of(capability: tuple[int, int] | None, dtype: torch.dtype) -> Tile:
    """The tile on a GPU of this compute capability; None stands for the interpreter."""
    if capability is None or dtype.itemsize > 2:
        return 64, 32, 4, 2
    return (256, 32, 8, 4) if capability >= SM90 else (128, 32, 8, 4)


def is_aligned(matrices: Tensor) -> bool:
    """Whether rows, or columns, begin at multiples of 16 bytes: with rank 4 some do not."""
    in_bytes = (max(matrices.stride()[-2:]) * matrices.element_size(), matrices.data_ptr())
    return not any(number % 16 for number in in_bytes)


def grouped_matmul(x_SI: Tensor, weight_EIO: Tensor, groups: Groups) -> Tensor:
    """y[s] = x[s] · weight[expert of s]; (S, I), (E, I, O) -> (S, O), products summed in fp32."""
    capability = _capability(x_SI.device)
    if x_SI.dtype == torch.bfloat16 and capability is not None and capability >= SM90:
        if groups.num_experts == 1:
            return x_SI @ weight_EIO[0]
        if is_aligned(x_SI) and is_aligned(weight_EIO):
            return functional.grouped_mm(x_SI, weight_EIO, offs=groups.offsets[1:])
    return triton_grouped_matmul(x_SI, weight_EIO, groups)


@triton.jit(do_not_specialize=KEYS)
def _outer_kernel(
    left,
    right,
    token,
    out,
    offsets,
    num_left,
    num_right,
    left_stride,
    right_stride,
    scale,
    key,
    threshold,
    GATHER: tl.constexpr,
    DROP: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    ROWS: tl.constexpr,
):
    expert = tl.program_id(0)
    m = tl.program_id(1) * LEFT + tl.arange(0, LEFT)
    n = tl.program_id(2) * RIGHT + tl.arange(0, RIGHT)
    in_m, in_n = m < num_left, n < num_right
    start, end = tl.load(offsets + expert), tl.load(offsets + expert + 1)
    low = tl.load(key) if DROP else 0
    high = tl.load(key + 1) if DROP else 0
    total = tl.zeros((LEFT, RIGHT), tl.float32)
    for first in range(start, end, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = row < end
        source = tl.load(token + row, inside, 0) if GATHER else row
        left_at = left + row.to(tl.int64)[:, None] * left_stride + m[None, :]
        right_at = right + source.to(tl.int64)[:, None] * right_stride + n[None, :]
        left_tile = tl.load(left_at, inside[:, None] & in_m[None, :], 0)
        right_tile = tl.load(right_at, inside[:, None] & in_n[None, :], 0)
        if DROP:
            first_index = row[:, None] * num_right + tl.program_id(2) * RIGHT
            keep = kept(first_index, low, high, threshold, RIGHT)
            right_tile = tl.where(keep, right_tile, 0.0).to(right_tile.dtype)
        total = tl.dot(tl.trans(left_tile), right_tile, total)
    out_at = out + expert.to(tl.int64) * num_left * num_right + m[:, None] * num_right + n[None, :]
    tl.store(out_at, total * scale, in_m[:, None] & in_n[None, :])


def grouped_outer(
    left_SM: Tensor,
    right_SN: Tensor,
    offsets: Tensor,
    *,
    scale: float = 1.0,
    token_S: Tensor | None = None,
    drop: DropKey = NOTHING_DROPPED,
) -> Tensor:
    """(E, M, N) fp32: for each expert, scale · sum over its rows s of left[s] ⊗ drop(right)[s].

    With `token_S`, row s of the right factor is `right_SN[token_S[s]]`.
    """
    num_left, num_right = left_SM.shape[1], right_SN.shape[1]
    num_experts = offsets.numel() - 1
    out = torch.empty(
        (num_experts, num_left, num_right), dtype=torch.float32, device=left_SM.device
    )
    tile_left, tile_right = (64, 128) if num_left <= 64 else (128, 128)
    if num_right <= 64:
        tile_right = 64
    grid = (num_experts, triton.cdiv(num_left, tile_left), triton.cdiv(num_right, tile_right))
    _outer_kernel[grid](
        left_SM,
        right_SN,
        offsets if token_S is None else token_S,
        out,
        offsets,
        num_left,
        num_right,
        left_SM.stride(0),
        right_SN.stride(0),
        scale,
        words_of(drop, right_SN),
        drop.threshold,
        GATHER=token_S is not None,
        DROP=drop.threshold > 0,
        LEFT=tile_left,
        RIGHT=tile_right,
        ROWS=64,
        num_warps=4 if tile_left * tile_right <= 8192 else 8,
        num_stages=3,
    )
    return out


@cache
def one_group(num_rows: int, device: torch.device) -> Groups:
    """All rows are one expert's: a plain linear layer. Made on the device: nobody waits for it.

    Kept for good, a few KB each: CUDA graphs hold their addresses.
    """
    offsets = num_rows * torch.arange(2, dtype=torch.int32, device=device)
    return group_rows(offsets, num_rows)
