"""Model FLOPs of a training step, and what devices can do at most.

Not here: measuring. Recomputation and dequantising are overhead, not model FLOPs.
"""

from collections.abc import Sequence
from typing import Final

from mmar_jobs.qlora.memory import ModelShape

# Dense bf16 FLOP/s by a part of torch's device name, from the vendors' data sheets; first match.
_PEAK_BF16: Final = {
    "H100 PCIe": 756e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "B200": 2250e12,
}


def peak_bf16_flops(device: str) -> float | None:
    """Dense bf16 FLOP/s of a device by name; None for one that the table lacks."""
    return next((peak for part, peak in _PEAK_BF16.items() if part in device), None)


def step_flops(
    shape: ModelShape, rank: int, lengths: Sequence[int], completion_tokens: int
) -> float:
    """FLOPs of forward and backward over rows with examples of these lengths.

    Per token and frozen weight 4 (forward 2, gradient of the input 2; a frozen weight has no
    gradient), per token and LoRA number 6, both counted for the experts that a token is sent to.
    The router is frozen and counts 4. The head counts 4 per weight and completion token. Causal
    attention over an example of n tokens: two products of n²/2 · heads · head_dim multiply-adds
    forward, twice that backward: 6 n² · heads · head_dim. The first layer's gradients for its
    input, which nobody needs, are counted too (under 1 %).
    """
    routed = shape.experts_per_token
    frozen = shape.attention_weights + routed * shape.expert_weights
    frozen += shape.num_experts * shape.hidden
    factors = shape.attention_factors(rank) + routed * shape.expert_factors(rank)
    linear = sum(lengths) * shape.num_layers * (4 * frozen + 6 * factors)
    head = 4.0 * completion_tokens * shape.vocabulary * shape.hidden
    squares = sum(length * length for length in lengths)
    attention = 6.0 * squares * shape.num_heads * shape.head_dim * shape.num_layers
    return linear + head + attention
