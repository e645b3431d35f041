"""The dropout mask inside a kernel, the same bits as mmar_jobs/qlora/dropout.py draws as a tensor.

Not here: keys (they come from `Dropout.key`).
"""

from typing import Final

import triton
import triton.language as tl
from torch import Tensor

from mmar_jobs.qlora.dropout import DropKey

# Arguments that take every value: a kernel must not be compiled anew for the lucky ones.
KEYS: Final = ["key", "threshold"]


def words_of(drop: DropKey, other: Tensor) -> Tensor:
    """What a kernel takes as `key`; it reads nothing from the other one where nothing drops."""
    return other if drop.words is None else drop.words


@triton.jit
def kept(first_index, low, high, threshold, COLUMNS: tl.constexpr):
    """(rows, COLUMNS) True where an input is kept; `hashed` in qlora/dropout.py says how.

    `low` and `high` are the words of a DropKey. `first_index` (rows, 1) is the flat index of each
    row's first column here, an even number: one word decides two neighbours.
    """
    word = ((first_index >> 1) + tl.arange(0, COLUMNS // 2)[None, :]).to(tl.uint32)
    word = word * 0x9E3779B1 + low.to(tl.uint32)
    word = (word ^ (word >> 16)) * 0x7FEB352D
    word = word ^ high.to(tl.uint32)
    word = (word ^ (word >> 15)) * 0x846CA68B
    word = word ^ (word >> 16)
    limit = threshold.to(tl.uint32)
    even = ((word & 0xFFFF) ^ 0x8000) >= limit
    odd = ((word >> 16) ^ 0x8000) >= limit
    return tl.interleave(even.to(tl.int8), odd.to(tl.int8)) != 0
