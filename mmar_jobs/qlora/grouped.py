"""The LoRA linear layer over rows sorted by expert: the reference, and what CPUs run.

All its GEMMs are here; attention is the case of one expert. Not here: routing (routing.py),
activation (experts.py), the GPU's own (fused.py).

Legend: S rows sorted by expert, E experts, I in-features, O out-features, R rank, G branches that
share an input and an A of G·R rows (gate and up: G = 2).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmar_jobs.qlora.foreign import Context


@dataclass(frozen=True, slots=True)
class LoraFactors:
    """Factors of G branches: `a` (E, G·R, I), `bs` G tensors (E, O/G, R).

    `scaling` is alpha / rank over the share of inputs kept. `dropped_SI` is True where the LoRA
    input is dropped, None without dropout.
    """

    a: Tensor
    bs: tuple[Tensor, ...]
    scaling: float
    dropped_SI: Tensor | None


def _spans(counts: list[int]) -> list[tuple[int, slice]]:
    """Expert and its rows, for every expert that has rows."""
    spans, start = [], 0
    for expert, count in enumerate(counts):
        if count:
            spans.append((expert, slice(start, start + count)))
        start += count
    return spans


class _GroupedLoraLinear(torch.autograd.Function):
    """y[s] = x[s] W_e^T + scaling · drop(x)[s] A_e^T B_e^T.

    The base weight is frozen: no gradient for it, and its input is not saved. Products accumulate
    into the output, so no second (S, O) exists.
    """

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917 - torch wants every tensor as an argument
        ctx: Context,
        x_SI: Tensor,
        weight_EOI: Tensor,
        counts: list[int],
        scaling: float,
        dropped_SI: Tensor | None,
        a: Tensor,
        *bs: Tensor,
    ) -> Tensor:
        input_SI = x_SI if dropped_SI is None else x_SI.masked_fill(dropped_SI, 0)
        out_SO = x_SI.new_empty(x_SI.shape[0], weight_EOI.shape[1])
        inner_SR = x_SI.new_empty(x_SI.shape[0], a.shape[1])
        for expert, rows in _spans(counts):
            torch.mm(x_SI[rows], weight_EOI[expert].T, out=out_SO[rows])
            torch.mm(input_SI[rows], a[expert].T, out=inner_SR[rows])
            outs, inners = out_SO[rows].chunk(len(bs), 1), inner_SR[rows].chunk(len(bs), 1)
            for out, inner, b in zip(outs, inners, bs, strict=True):
                out.addmm_(inner, b[expert].T, alpha=scaling)
        ctx.save_for_backward(weight_EOI, input_SI, dropped_SI, inner_SR, a, *bs)
        ctx.counts, ctx.scaling = counts, scaling
        return out_SO

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight_EOI, input_SI, dropped_SI, inner_SR, a, *bs = ctx.saved_tensors
        grad_SO, scaling = grads[0].contiguous(), ctx.scaling
        grad_x_SI = torch.empty_like(input_SI)
        grad_a, grad_bs = torch.zeros_like(a), [torch.zeros_like(b) for b in bs]
        grad_inner_SR = torch.empty_like(inner_SR)
        for expert, rows in _spans(ctx.counts):
            parts = zip(
                *(tensor[rows].chunk(len(bs), 1) for tensor in (grad_SO, inner_SR, grad_inner_SR)),
                bs,
                grad_bs,
                strict=True,
            )
            for grad, inner, grad_inner, b, grad_b in parts:
                grad_inner.addmm_(grad, b[expert], beta=0, alpha=scaling)
                grad_b[expert].addmm_(grad.T, inner, beta=0, alpha=scaling)
            torch.mm(grad_inner_SR[rows].T, input_SI[rows], out=grad_a[expert])
            torch.mm(grad_inner_SR[rows], a[expert], out=grad_x_SI[rows])
        if dropped_SI is not None:
            grad_x_SI.masked_fill_(dropped_SI, 0)
        for expert, rows in _spans(ctx.counts):
            grad_x_SI[rows].addmm_(grad_SO[rows], weight_EOI[expert])
        return grad_x_SI, None, None, None, None, grad_a, *grad_bs


def grouped_lora_linear(
    x_SI: Tensor, weight_EOI: Tensor, counts: list[int], lora: LoraFactors
) -> Tensor:
    """Apply to each block of rows its expert's frozen matrix and its LoRA; returns (S, O).

    `counts[e]` is the number of rows of expert e, in order; their sum is S. Factors are used in the
    dtype of x; gradients are exact for x and all factors, none is made for the weight.
    """
    dtype = x_SI.dtype
    bs = [b.to(dtype) for b in lora.bs]
    out_SO: Tensor = _GroupedLoraLinear.apply(  # type: ignore[no-untyped-call]
        x_SI, weight_EOI, counts, lora.scaling, lora.dropped_SI, lora.a.to(dtype), *bs
    )
    return out_SO


def grouped_linear(x_SI: Tensor, weight_EOI: Tensor, counts: list[int]) -> Tensor:
    """The frozen matrices alone, for a model without LoRA.

    Differentiable by autograd, returns (S, O).
    """
    blocks = [x_SI[rows] @ weight_EOI[expert].T for expert, rows in _spans(counts)]
    return torch.cat(blocks) if blocks else x_SI.new_zeros(0, weight_EOI.shape[1])
