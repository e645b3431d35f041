"""Sorting routed rows by expert and bringing them back, with gathers in both directions.

Not here: what the experts do (experts.py). Gathers by a permutation and its inverse replace
index_put and index_add: those are serial on CPU, atomic on CUDA, and give other bits on every run
there.

Legend: T tokens, K experts per token, S = T·K routed rows sorted by expert, H hidden.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmar_jobs.qlora.foreign import Context


@dataclass(frozen=True, slots=True)
class Routing:
    """`order_S` sorts the routed rows by expert, `place_S` undoes it, `counts` rows per expert."""

    order_S: Tensor
    place_S: Tensor
    counts: list[int]
    experts_per_token: int


def sort_by_expert(top_k_index_TK: Tensor, num_experts: int) -> Routing:
    """Sort the routed rows by expert, stably, so that equal inputs give equal bits."""
    expert_S = top_k_index_TK.reshape(-1)
    order_S = torch.argsort(expert_S, stable=True)
    place_S = torch.empty_like(order_S)
    place_S[order_S] = torch.arange(order_S.numel(), device=order_S.device)
    counts = torch.bincount(expert_S, minlength=num_experts).tolist()
    return Routing(order_S, place_S, counts, top_k_index_TK.shape[-1])


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x_TH: Tensor, routing: Routing) -> Tensor:
        ctx.routing = routing
        return x_TH.index_select(0, routing.order_S // routing.experts_per_token)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, None]:
        routing: Routing = ctx.routing
        rows_SH = grads[0].index_select(0, routing.place_S)
        return rows_SH.view(-1, routing.experts_per_token, rows_SH.shape[-1]).sum(1), None


class _Unsort(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, rows_SH: Tensor, routing: Routing) -> Tensor:
        ctx.routing = routing
        return rows_SH.index_select(0, routing.place_S)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].index_select(0, ctx.routing.order_S), None


def to_experts(x_TH: Tensor, routing: Routing) -> Tensor:
    """(T, H) tokens -> (S, H) routed rows in expert order."""
    rows_SH: Tensor = _Dispatch.apply(x_TH, routing)  # type: ignore[no-untyped-call]
    return rows_SH


def to_tokens(rows_SH: Tensor, routing: Routing, weights_TK: Tensor) -> Tensor:
    """Weight the (S, H) expert outputs and add up the K rows of each token; returns (T, H)."""
    back_SH: Tensor = _Unsort.apply(rows_SH, routing)  # type: ignore[no-untyped-call]
    rows_TKH = back_SH.view(*weights_TK.shape, back_SH.shape[-1])
    return (rows_TKH * weights_TK.to(back_SH.dtype)[..., None]).sum(1)
