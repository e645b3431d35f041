"""The dropout mask inside a kernel, the same bits as mmar_jobs/qlora/dropout.py draws as a tensor.

Not here: keys (they come from `Dropout.key`).
"""

from typing import Final

import triton
import triton.language as tl

# Arguments that take every value: a kernel must not be compiled anew for the lucky ones.
KEYS: Final = ["key_low", "key_high", "threshold"]


@triton.jit
def kept(index, key_low, key_high, threshold):
    """True where the element at a flat `index` is kept; `hashed` in qlora/dropout.py says how."""
    word = (index >> 1).to(tl.uint32) * 0x9E3779B1 + key_low.to(tl.uint32)
    word = (word ^ (word >> 16)) * 0x7FEB352D
    word = word ^ key_high.to(tl.uint32)
    word = (word ^ (word >> 15)) * 0x846CA68B
    word = word ^ (word >> 16)
    draw = (word >> ((index & 1) * 16).to(tl.uint32)) & 0xFFFF
    return (draw ^ 0x8000) >= threshold.to(tl.uint32)
