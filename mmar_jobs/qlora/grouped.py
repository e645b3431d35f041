"""Linear layers over rows that are sorted by expert: the one place where expert GEMMs run.

Not here: routing, LoRA, activation (experts.py). A faster backend (torch grouped_mm, Triton) replaces
`grouped_linear` and nothing else.

Legend: S rows sorted by expert, E experts, I in-features, O out-features.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def _spans(counts: list[int]) -> list[tuple[int, int, int]]:
    """(expert, start, end) of every expert that has rows."""
    spans, start = [], 0
    for expert, count in enumerate(counts):
        if count:
            spans.append((expert, start, start + count))
        start += count
    return spans


class _GroupedLinear(torch.autograd.Function):
    """y[s] = x[s] @ W[expert of s].T with exact gradients for x and, where asked, W."""

    @staticmethod
    def forward(ctx: Any, x_SI: Tensor, weight_EOI: Tensor, counts: list[int]) -> Tensor:  # noqa: ANN401 - torch's own contract
        out_SO = x_SI.new_empty(x_SI.shape[0], weight_EOI.shape[1])
        for expert, start, end in _spans(counts):
            torch.mm(x_SI[start:end], weight_EOI[expert].T, out=out_SO[start:end])
        ctx.save_for_backward(x_SI, weight_EOI)
        ctx.counts = counts
        return out_SO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # noqa: ANN401 - torch's own contract
        grad_SO = grads[0].contiguous()
        x_SI, weight_EOI = ctx.saved_tensors
        needs_x, needs_weight, _ = ctx.needs_input_grad
        grad_x_SI = torch.empty_like(x_SI) if needs_x else None
        grad_weight_EOI = torch.zeros_like(weight_EOI) if needs_weight else None
        for expert, start, end in _spans(ctx.counts):
            if grad_x_SI is not None:
                torch.mm(grad_SO[start:end], weight_EOI[expert], out=grad_x_SI[start:end])
            if grad_weight_EOI is not None:
                torch.mm(grad_SO[start:end].T, x_SI[start:end], out=grad_weight_EOI[expert])
        return grad_x_SI, grad_weight_EOI, None


def grouped_linear(x_SI: Tensor, weight_EOI: Tensor, counts: list[int]) -> Tensor:
    """Apply to each block of rows its expert's matrix.

    `counts[e]` is the number of rows of expert e, in order; their sum is S. Both tensors have one dtype.
    Returns (S, O).
    """
    out: Tensor = _GroupedLinear.apply(x_SI, weight_EOI, counts)  # type: ignore[no-untyped-call]
    return out
