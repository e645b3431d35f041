"""Linear layers with LoRA as one wide product, and the experts built from them, for the GPU.

LoRA rides along as columns of the base's own product: with x' = [x | s·drop(x)A^T] and
W' = [W | B], x'W'^T is the whole forward, and dy·W' is the gradient of x and of the inner columns
at once. So LoRA costs R more columns instead of two more passes over the outputs, and no delta of
the size of a weight is formed. W' is decoded from NF4 when it is needed and never kept.

Not here: kernels (kernels/), the same arithmetic without them (grouped.py, experts.py: the
reference, and what CPUs run).

Legend: T tokens, K experts per token, S = T·K routed rows sorted by expert, E experts, H hidden, I
in-features or expert width, O out-features, G branches, R rank, J = I + G·R.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmar_jobs.qlora.dropout import DropKey
from mmar_jobs.qlora.foreign import Context
from mmar_jobs.qlora.kernels.combine import combine
from mmar_jobs.qlora.kernels.grouped import (
    Groups,
    group_rows,
    grouped_matmul,
    grouped_outer,
    one_group,
)
from mmar_jobs.qlora.kernels.lora import append_inner, dropped
from mmar_jobs.qlora.kernels.swiglu import swiglu, swiglu_backward
from mmar_jobs.qlora.kernels.widen import widen
from mmar_jobs.qlora.nf4 import Nf4Weight

_BYTE: Final = 255


@dataclass(frozen=True, slots=True)
class Projection:
    """Frozen matrices below one another, and how LoRA joins them.

    `weights` are (E, O_w, I) or (O_w, I); their outputs stand side by side. LoRA's branches follow
    in order, one to a weight, or two that halve it.
    """

    weights: tuple[Tensor | Nf4Weight, ...]
    scaling: float
    drop: DropKey


@dataclass(frozen=True, slots=True)
class Routing:
    """Where each routed row comes from, `token_S`, where it went, `place_TK`, and its group."""

    token_S: Tensor
    place_TK: Tensor
    order_S: Tensor
    groups: Groups


def route(top_k_index_TK: Tensor, num_experts: int) -> Routing:
    """Sort the routed rows by expert, stably, without waiting for the GPU."""
    expert_S = top_k_index_TK.reshape(-1)
    if num_experts <= _BYTE:
        expert_S = expert_S.to(torch.uint8)  # an eighth of the bits to sort by
    sorted_S, order_S = torch.sort(expert_S, stable=True)
    steps = torch.arange(order_S.numel(), dtype=torch.int32, device=order_S.device)
    place_S = torch.empty_like(steps)
    place_S[order_S] = steps
    edges = torch.arange(num_experts + 1, dtype=sorted_S.dtype, device=order_S.device)
    offsets = torch.searchsorted(sorted_S, edges, out_int32=True)
    token_S = (order_S // top_k_index_TK.shape[-1]).to(torch.int32)
    groups = group_rows(offsets, order_S.numel())
    return Routing(token_S, place_S.view(top_k_index_TK.shape), order_S, groups)


def widened(projection: Projection, bs: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """W' (E, O, I + G·R): the decoded weights and, block-diagonally to their right, the Bs."""
    shapes = [(1, *weight.shape)[-3:] for weight in projection.weights]
    num_experts, _, width = shapes[0]
    rank = bs[0].shape[-1]
    num_out = sum(shape[1] for shape in shapes)
    out = torch.empty(
        (num_experts, num_out, width + len(bs) * rank), dtype=dtype, device=bs[0].device
    )
    row = branch = 0
    for weight, shape in zip(projection.weights, shapes, strict=True):
        own = bs[branch : branch + shape[1] // bs[branch].shape[-2]]
        widen(weight, own, out[:, row : row + shape[1]], first_column=branch * rank)
        row, branch = row + shape[1], branch + len(own)
    return out


class _LoraLinear(torch.autograd.Function):
    """A linear layer of one group: saves its input and the inner columns, decodes twice."""

    @staticmethod
    def forward(
        ctx: Context, x_TI: Tensor, projection: Projection, a: Tensor, *bs: Tensor
    ) -> Tensor:
        groups = one_group(x_TI.shape[0], x_TI.device)
        wide_TJ = append_inner(
            x_TI,
            a[None],
            groups,
            num_rows=x_TI.shape[0],
            scale=projection.scaling,
            drop=projection.drop,
        )
        weight_1OJ = widened(projection, bs, x_TI.dtype)
        ctx.projection = projection
        ctx.save_for_backward(wide_TJ, a, *bs)
        return grouped_matmul(wide_TJ, weight_1OJ.transpose(-1, -2), groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wide_TJ, a, *bs = ctx.saved_tensors
        projection: Projection = ctx.projection
        num_in, grad_TO = a.shape[1], grads[0].contiguous()
        groups = one_group(wide_TJ.shape[0], wide_TJ.device)
        grad_TJ = grouped_matmul(grad_TO, widened(projection, bs, wide_TJ.dtype), groups)
        kept_TI = dropped(wide_TJ[:, :num_in], scale=projection.scaling, drop=projection.drop)
        grad_a = _outer(grad_TJ[:, num_in:], kept_TI)
        grad_bs = _grads_of_b(grad_TO, wide_TJ[:, num_in:], bs)
        grad_x = _input_grad(projection, grad_TJ, a[None], groups)
        return grad_x, None, grad_a, *grad_bs


def _input_grad(
    projection: Projection,
    grad_SJ: Tensor,
    a: Tensor,
    groups: Groups,
    place_TK: Tensor | None = None,
) -> Tensor:
    """(T, I): what came through the weights plus what came through LoRA, rows added by token."""
    num_in = a.shape[-1]
    return combine(
        grad_SJ[:, :num_in],
        place_TK,
        extra_SH=grouped_matmul(grad_SJ[:, num_in:], a.to(grad_SJ.dtype), groups),
        scale=projection.scaling,
        drop=projection.drop,
    )


def _outer(left_TM: Tensor, right_TN: Tensor) -> Tensor:
    """(M, N): the sum over rows of left ⊗ right, summed and returned in fp32."""
    if not left_TM.is_cuda:
        return left_TM.float().T @ right_TN.float()
    return torch.mm(left_TM.T, right_TN, out_dtype=torch.float32)


def _grads_of_b(grad_TO: Tensor, inner_TGR: Tensor, bs: Sequence[Tensor]) -> list[Tensor]:
    grads, row, rank = [], 0, bs[0].shape[-1]
    for branch, b in enumerate(bs):
        inner_TR = inner_TGR[:, branch * rank : (branch + 1) * rank]
        grads.append(_outer(grad_TO[:, row : row + b.shape[0]], inner_TR))
        row += b.shape[0]
    return grads


def lora_linear(x_TI: Tensor, projection: Projection, a: Tensor, bs: Sequence[Tensor]) -> Tensor:
    """(T, I) -> (T, O): the weights below one another, plus LoRA; `a` (G·R, I), `bs` (O_g, R)."""
    out_TO: Tensor = _LoraLinear.apply(x_TI, projection, a, *bs)  # type: ignore[no-untyped-call]
    return out_TO


@dataclass(frozen=True, slots=True)
class ExpertsCall:
    """The frozen part of one call of a layer's experts.

    `keeps_gate_up`: the gate_up outputs stay in memory for the backward pass, (S, 2I), instead of
    being computed again there.
    """

    gate_up: Projection
    down: Projection
    routing: Routing
    keeps_gate_up: bool


class _Experts(torch.autograd.Function):
    """All of a layer's experts: its input is saved, what else the gradient needs is made again."""

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917 - torch wants every tensor as an argument
        ctx: Context,
        call: ExpertsCall,
        hidden_TH: Tensor,
        weight_TK: Tensor,
        gate_up_A: Tensor,
        gate_B: Tensor,
        up_B: Tensor,
        down_A: Tensor,
        down_B: Tensor,
    ) -> Tensor:
        routing = call.routing
        wide_SJ = _gate_up_input(call, hidden_TH, gate_up_A)
        weight_EOJ = widened(call.gate_up, (gate_B, up_B), hidden_TH.dtype)
        gate_up_S2I = grouped_matmul(wide_SJ, weight_EOJ.transpose(-1, -2), routing.groups)
        kept: tuple[Tensor, ...] = ()
        if call.keeps_gate_up:
            kept = (gate_up_S2I, wide_SJ[:, hidden_TH.shape[1] :].contiguous())
        ctx.call = call
        ctx.save_for_backward(hidden_TH, weight_TK, gate_up_A, gate_B, up_B, down_A, down_B, *kept)
        del wide_SJ, weight_EOJ
        inner_SI = swiglu(gate_up_S2I, weight_TK.reshape(-1)[routing.order_S])
        wide_SJ = _down_input(call, inner_SI, down_A)
        weight_EOJ = widened(call.down, (down_B,), hidden_TH.dtype)
        out_SH = grouped_matmul(wide_SJ, weight_EOJ.transpose(-1, -2), routing.groups)
        return combine(out_SH, routing.place_TK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        call: ExpertsCall = ctx.call
        hidden_TH, weight_TK, gate_up_A, gate_B, up_B, down_A, down_B, *kept = ctx.saved_tensors
        routing = call.routing
        weight_S = weight_TK.reshape(-1)[routing.order_S]
        weight_EOJ = widened(call.gate_up, (gate_B, up_B), hidden_TH.dtype)
        if kept:
            gate_up_S2I, inner_SGR = kept
        else:
            wide_SJ = _gate_up_input(call, hidden_TH, gate_up_A)
            gate_up_S2I = grouped_matmul(wide_SJ, weight_EOJ.transpose(-1, -2), routing.groups)
            inner_SGR = wide_SJ[:, hidden_TH.shape[1] :].contiguous()
            del wide_SJ
        grad_SJ, grad_down_A, grad_down_B = _down_backward(
            call, swiglu(gate_up_S2I, weight_S), grads[0], down_A, down_B
        )
        width, rank, offsets = gate_B.shape[1], gate_B.shape[2], routing.groups.offsets
        grad_gate_up_S2I, grad_weight_S = swiglu_backward(
            gate_up_S2I,
            weight_S,
            grad_SJ[:, :width],
            extra_SI=grouped_matmul(grad_SJ[:, width:], down_A.to(grad_SJ.dtype), routing.groups),
            scale=call.down.scaling,
            drop=call.down.drop,
        )
        del gate_up_S2I, grad_SJ
        grad_SJ = grouped_matmul(grad_gate_up_S2I, weight_EOJ, routing.groups)
        del weight_EOJ
        grad_gate_B = grouped_outer(grad_gate_up_S2I[:, :width], inner_SGR[:, :rank], offsets)
        grad_up_B = grouped_outer(grad_gate_up_S2I[:, width:], inner_SGR[:, rank:], offsets)
        projection, num_in = call.gate_up, hidden_TH.shape[1]
        grad_gate_up_A = grouped_outer(
            grad_SJ[:, num_in:],
            hidden_TH,
            offsets,
            scale=projection.scaling,
            token_S=routing.token_S,
            drop=projection.drop,
        )
        grad_weight_TK = grad_weight_S[routing.place_TK].to(weight_TK.dtype)
        return (
            None,
            _input_grad(projection, grad_SJ, gate_up_A, routing.groups, routing.place_TK),
            grad_weight_TK,
            grad_gate_up_A,
            grad_gate_B,
            grad_up_B,
            grad_down_A,
            grad_down_B,
        )


def _gate_up_input(call: ExpertsCall, hidden_TH: Tensor, gate_up_A: Tensor) -> Tensor:
    routing = call.routing
    return append_inner(
        hidden_TH,
        gate_up_A,
        routing.groups,
        num_rows=routing.token_S.numel(),
        scale=call.gate_up.scaling,
        drop=call.gate_up.drop,
        token_S=routing.token_S,
    )


def _down_input(call: ExpertsCall, inner_SI: Tensor, down_A: Tensor) -> Tensor:
    return append_inner(
        inner_SI,
        down_A,
        call.routing.groups,
        num_rows=inner_SI.shape[0],
        scale=call.down.scaling,
        drop=call.down.drop,
    )


def _down_backward(
    call: ExpertsCall, inner_SI: Tensor, grad_TH: Tensor, down_A: Tensor, down_B: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for the down projection's input and inner columns (S, I + R), its A and its B."""
    groups, projection = call.routing.groups, call.down
    grad_SH = grad_TH.index_select(0, call.routing.token_S)
    width = inner_SI.shape[1]
    wide_SJ = _down_input(call, inner_SI, down_A)
    grad_B = grouped_outer(grad_SH, wide_SJ[:, width:], groups.offsets)
    weight_EOJ = widened(projection, (down_B,), grad_TH.dtype)
    grad_SJ = grouped_matmul(grad_SH, weight_EOJ, groups)
    grad_A = grouped_outer(
        grad_SJ[:, width:],
        wide_SJ[:, :width],
        groups.offsets,
        scale=projection.scaling,
        drop=projection.drop,
    )
    return grad_SJ, grad_A, grad_B


def lora_experts(call: ExpertsCall, hidden_TH: Tensor, weight_TK: Tensor, factors: Any) -> Tensor:
    """(T, H) -> (T, H): every token through its K experts, weighted and added up.

    `factors` carries gate_up_A, gate_B, up_B, down_A, down_B as in experts.ExpertLora.
    """
    out_TH: Tensor = _Experts.apply(  # type: ignore[no-untyped-call]
        call,
        hidden_TH,
        weight_TK,
        factors.gate_up_A,
        factors.gate_B,
        factors.up_B,
        factors.down_A,
        factors.down_B,
    )
    return out_TH
