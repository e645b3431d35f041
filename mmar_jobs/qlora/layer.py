"""A decoder layer for training on the GPU: its norms, rotations and projections as fused kernels.

It takes the place of a transformers decoder layer and holds the same children under the same names,
so that parameters, factors and files keep theirs. Not here: CPU, where the layer of transformers
itself runs with LoRA in its linear layers.

Legend: T tokens of a packed row, H hidden, D head size, N columns of q, k and v side by side.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from mmar_jobs.qlora.attention import RowLayout, attend_rows
from mmar_jobs.qlora.experts import ExpertLora
from mmar_jobs.qlora.foreign import Context
from mmar_jobs.qlora.fused import ExpertsCall, Projection, lora_experts, lora_linear, route
from mmar_jobs.qlora.kernels.norm import add_rms_norm, rms_norm_backward
from mmar_jobs.qlora.kernels.rope import norm_and_rotate, norm_and_rotate_backward
from mmar_jobs.qlora.recipes import Saved


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context, residual_TH: Tensor, delta_TH: Tensor | None, weight_H: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        total_TH, out_TH, rms_T = add_rms_norm(residual_TH, delta_TH, weight_H, eps)
        ctx.save_for_backward(total_TH, weight_H, rms_T)
        ctx.has_delta = delta_TH is not None
        return (total_TH if delta_TH is not None else residual_TH.view_as(residual_TH)), out_TH

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        total_TH, weight_H, rms_T = ctx.saved_tensors
        grad_total_TH, grad_out_TH = grads
        grad_TH = rms_norm_backward(
            total_TH, weight_H, rms_T, grad_out_TH.contiguous(), grad_total_TH.contiguous()
        )
        return grad_TH, grad_TH if ctx.has_delta else None, None, None


def _add_norm(residual_TH: Tensor, delta_TH: Tensor | None, norm: nn.Module) -> tuple[Any, Any]:
    """The sum and its norm; frozen weights."""
    eps = float(norm.variance_epsilon)  # type: ignore[arg-type]
    total_TH, out_TH = _AddNorm.apply(  # type: ignore[no-untyped-call]
        residual_TH, delta_TH, norm.weight, eps
    )
    return total_TH, out_TH


class _NormRotate(torch.autograd.Function):
    """q, k and v out of their common columns: q and k normed by head and rotated."""

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917 - torch wants every tensor as an argument
        ctx: Context,
        qkv_TN: Tensor,
        q_weight_D: Tensor,
        k_weight_D: Tensor,
        cos_TD: Tensor,
        sin_TD: Tensor,
        num_kv_heads: int,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        size = q_weight_D.numel()
        num_kv = num_kv_heads * size
        num_q = qkv_TN.shape[1] - 2 * num_kv
        ctx.save_for_backward(qkv_TN, q_weight_D, k_weight_D, cos_TD, sin_TD)
        ctx.num_q, ctx.num_kv, ctx.eps = num_q, num_kv, eps
        q_TN, k_TN, v_TN = torch.split(qkv_TN, [num_q, num_kv, num_kv], dim=1)
        return (
            norm_and_rotate(q_TN, q_weight_D, cos_TD, sin_TD, eps=eps),
            norm_and_rotate(k_TN, k_weight_D, cos_TD, sin_TD, eps=eps),
            v_TN.contiguous().view(-1, num_kv_heads, size),
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        qkv_TN, q_weight_D, k_weight_D, cos_TD, sin_TD = ctx.saved_tensors
        grad_TN = torch.empty_like(qkv_TN)
        parts = [ctx.num_q, ctx.num_kv, ctx.num_kv]
        q_TN, k_TN, _ = torch.split(qkv_TN, parts, dim=1)
        grad_q_TN, grad_k_TN, grad_v_TN = torch.split(grad_TN, parts, dim=1)
        for x, weight, grad, out in (
            (q_TN, q_weight_D, grads[0], grad_q_TN),
            (k_TN, k_weight_D, grads[1], grad_k_TN),
        ):
            norm_and_rotate_backward(x, weight, cos_TD, sin_TD, grad, eps=ctx.eps, out_TN=out)
        grad_v_TN.copy_(grads[2].reshape(grad_v_TN.shape))
        return grad_TN, None, None, None, None, None, None


class FusedLayer(nn.Module):
    """Takes the place of `layer`, whose linear layers and experts carry LoRA already."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.self_attn = layer.get_submodule("self_attn")
        self.mlp = layer.get_submodule("mlp")
        self.input_layernorm = layer.get_submodule("input_layernorm")
        self.post_attention_layernorm = layer.get_submodule("post_attention_layernorm")
        self.saved = Saved()

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """(1, T, H) -> (1, T, H); takes the keywords of transformers' decoder layer.

        Needs `position_embeddings`, cos and sin of (1, T, D), and `row_layout`.
        """
        cos_1TD, sin_1TD = kwargs["position_embeddings"]
        row: RowLayout = kwargs["row_layout"]
        hidden_TH = hidden_states[0]
        attend = (hidden_TH, cos_1TD[0], sin_1TD[0], row)
        if self.saved.attention or not torch.is_grad_enabled():
            residual_TH, delta_TH = self._attend(*attend)
        else:
            residual_TH, delta_TH = checkpoint(
                self._attend, *attend, use_reentrant=False, preserve_rng_state=False
            )
        residual_TH, normed_TH = _add_norm(residual_TH, delta_TH, self.post_attention_layernorm)
        out_TH: Tensor = residual_TH + self._experts(normed_TH)
        return out_TH[None]

    def _attend(
        self, hidden_TH: Tensor, cos_TD: Tensor, sin_TD: Tensor, row: RowLayout
    ) -> tuple[Tensor, Tensor]:
        attention: Any = self.self_attn
        residual_TH, normed_TH = _add_norm(hidden_TH, None, self.input_layernorm)
        qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
        qkv_TN = _project(normed_TH, qkv)
        size = int(attention.head_dim)
        q_THD, k_THD, v_THD = _NormRotate.apply(  # type: ignore[no-untyped-call]
            qkv_TN,
            attention.q_norm.weight,
            attention.k_norm.weight,
            cos_TD,
            sin_TD,
            attention.k_proj.base.out_features // size,
            float(attention.q_norm.variance_epsilon),
        )
        out_THD = attend_rows(q_THD, k_THD, v_THD, row, scale=attention.scaling)
        return residual_TH, _project(out_THD.flatten(1), (attention.o_proj,))

    def _experts(self, normed_TH: Tensor) -> Tensor:
        block: Any = self.mlp
        _, weight_TK, index_TK = block.gate(normed_TH)
        lora: ExpertLora = block.experts.lora
        call = ExpertsCall(
            Projection((block.experts.gate_up_proj,), *lora.gate_up_scaling()),
            Projection((block.experts.down_proj,), *lora.down_scaling()),
            route(index_TK, int(block.experts.num_experts)),
            keeps_gate_up=self.saved.gate_up,
        )
        return lora_experts(call, normed_TH, weight_TK, lora)


def _project(x_TI: Tensor, sites: tuple[Any, ...]) -> Tensor:
    """Linear layers of one input as one product; their masks are the first one's."""
    first = sites[0]
    scaling, drop = first.scaling_and_key()
    return lora_linear(
        x_TI,
        Projection(tuple(site.base.weight for site in sites), scaling, drop),
        torch.cat([site.lora_A for site in sites]) if len(sites) > 1 else first.lora_A,
        [site.lora_B for site in sites],
    )
