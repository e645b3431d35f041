"""The experts' forward with LoRA on gate, up and down, registered the way transformers does it.

Not here: the GEMMs (grouped.py), sorting (routing.py), where the factors come from (lora.py). No delta of the size of a weight
is ever formed: LoRA runs as two thin grouped GEMMs beside the base.

Legend: T tokens, K experts per token, S = T·K routed rows sorted by expert, E experts, H hidden, I expert
width, R rank.
"""

import math
from typing import Final

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from mmar_jobs.qlora.dropout import Dropout
from mmar_jobs.qlora.grouped import grouped_linear
from mmar_jobs.qlora.routing import sort_by_expert, to_experts, to_tokens

BACKEND: Final = "mmar_qlora"


class ExpertLora(nn.Module):
    """LoRA factors of all experts of one layer, stacked, fp32.

    `gate_up_A` (E, 2R, H) holds the A of gate, then of up: they read the same input. `gate_B` and `up_B`
    are (E, I, R), `down_A` (E, R, I), `down_B` (E, H, R).
    """

    def __init__(self, experts: nn.Module, rank: int, *, scaling: float, dropout: Dropout) -> None:
        super().__init__()
        num_experts, hidden, width = (
            int(experts.num_experts),  # type: ignore[arg-type]
            int(experts.hidden_dim),  # type: ignore[arg-type]
            int(experts.intermediate_dim),  # type: ignore[arg-type]
        )
        device = next(experts.parameters()).device
        shapes = {
            "gate_up_A": (num_experts, 2 * rank, hidden),
            "gate_B": (num_experts, width, rank),
            "up_B": (num_experts, width, rank),
            "down_A": (num_experts, rank, width),
            "down_B": (num_experts, hidden, rank),
        }
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape, device=device)))
        self.scaling = scaling
        self.dropout = dropout
        self.site = 0

    gate_up_A: nn.Parameter
    gate_B: nn.Parameter
    up_B: nn.Parameter
    down_A: nn.Parameter
    down_B: nn.Parameter

    def init_factors(self, generator: torch.Generator) -> None:
        """A: uniform in ±1/sqrt(fan-in), as kaiming_uniform_(a=sqrt(5)) of PEFT; B: zero."""
        for factor in (self.gate_up_A, self.down_A):
            fill_uniform(factor, generator)

    def gate_up(self, x_SH: Tensor, counts: list[int]) -> Tensor:
        """What LoRA adds to the fused gate and up outputs, (S, 2I)."""
        dropped_SH = self.dropout(x_SH, self.site)
        inner_SR = grouped_linear(dropped_SH, self.gate_up_A.to(x_SH.dtype), counts)
        gate_SR, up_SR = (inner_SR * self.scaling).chunk(2, dim=-1)
        gate_SI = grouped_linear(gate_SR.contiguous(), self.gate_B.to(x_SH.dtype), counts)
        up_SI = grouped_linear(up_SR.contiguous(), self.up_B.to(x_SH.dtype), counts)
        return torch.cat((gate_SI, up_SI), dim=-1)

    def down(self, x_SI: Tensor, counts: list[int]) -> Tensor:
        """What LoRA adds to the down output, (S, H)."""
        dropped_SI = self.dropout(x_SI, self.site + 1)
        inner_SR = grouped_linear(dropped_SI, self.down_A.to(x_SI.dtype), counts)
        return grouped_linear(inner_SR * self.scaling, self.down_B.to(x_SI.dtype), counts)


def fill_uniform(factor: Tensor, generator: torch.Generator) -> None:
    """Draw `factor` (…, R, fan-in) on CPU, so that every device starts from the same bits."""
    bound = 1 / math.sqrt(factor.shape[-1])
    drawn = torch.empty(factor.shape, dtype=torch.float32).uniform_(
        -bound, bound, generator=generator
    )
    with torch.no_grad():
        factor.copy_(drawn)


def experts_forward(
    self: nn.Module, hidden_TH: Tensor, top_k_index_TK: Tensor, top_k_weights_TK: Tensor
) -> Tensor:
    """One layer's experts, with LoRA where the module carries a child named `lora`; returns (T, H).

    Signature and meaning as in transformers' ALL_EXPERTS_FUNCTIONS (integrations/moe.py, 5.17).
    """
    gate_up_proj, down_proj = self.get_parameter("gate_up_proj"), self.get_parameter("down_proj")
    lora = getattr(self, "lora", None)
    routing = sort_by_expert(top_k_index_TK, gate_up_proj.shape[0])
    x_SH = to_experts(hidden_TH, routing)
    gate_up_S2I = grouped_linear(x_SH, gate_up_proj, routing.counts)
    if isinstance(lora, ExpertLora):
        gate_up_S2I = gate_up_S2I + lora.gate_up(x_SH, routing.counts)
    gate_SI, up_SI = gate_up_S2I.chunk(2, dim=-1)
    inner_SI: Tensor = self.act_fn(gate_SI) * up_SI  # type: ignore[operator]
    out_SH = grouped_linear(inner_SI, down_proj, routing.counts)
    if isinstance(lora, ExpertLora):
        out_SH = out_SH + lora.down(inner_SI, routing.counts)
    return to_tokens(out_SH, routing, top_k_weights_TK).to(hidden_TH.dtype)


ALL_EXPERTS_FUNCTIONS.register(BACKEND, experts_forward)
