"""The experts' forward with LoRA on gate, up and down, registered the way transformers does it.

The reference, and what CPUs run; the GPU's is fused.py. Not here: the GEMMs (grouped.py), sorting
(routing.py), where the factors come from (lora.py). No delta of the size of a weight is
ever formed: LoRA runs as two thin grouped GEMMs beside the base.

Legend: T tokens, K experts per token, S = T·K routed rows sorted by expert, E experts, H hidden, I
expert width, R rank.
"""

import math
from typing import Final, cast

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from mmar_jobs.qlora.dropout import DropKey, Dropout
from mmar_jobs.qlora.grouped import LoraFactors, grouped_linear, grouped_lora_linear
from mmar_jobs.qlora.nf4 import Nf4Weight
from mmar_jobs.qlora.routing import sort_by_expert, to_experts, to_tokens

BACKEND: Final = "mmar_qlora"


class ExpertLora(nn.Module):
    """LoRA factors of all experts of one layer, stacked, fp32.

    `gate_up_A` (E, 2R, H) holds the A of gate, then of up: they read the same input. `gate_B` and
    `up_B` are (E, I, R), `down_A` (E, R, I), `down_B` (E, H, R).
    """

    def __init__(self, experts: nn.Module, rank: int, *, scaling: float, dropout: Dropout) -> None:
        super().__init__()
        num_experts, hidden, width = (
            int(experts.num_experts),  # type: ignore[arg-type]
            int(experts.hidden_dim),  # type: ignore[arg-type]
            int(experts.intermediate_dim),  # type: ignore[arg-type]
        )
        device = cast("Tensor | Nf4Weight", experts.gate_up_proj).device
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

    def gate_up_scaling(self) -> tuple[float, DropKey]:
        """Factor on what is kept of the gate_up LoRA's input, and the name of its mask."""
        return self.scaling / self.dropout.kept_share, self.dropout.key(
            self.site, self.down_A.device
        )

    def down_scaling(self) -> tuple[float, DropKey]:
        """The same of the down projection."""
        return self.scaling / self.dropout.kept_share, self.dropout.key(
            self.site + 1, self.down_A.device
        )

    def _factors(self, a: Tensor, bs: tuple[Tensor, ...], x_SI: Tensor, site: int) -> LoraFactors:
        mask = self.dropout.mask(x_SI.shape, site, device=x_SI.device)
        return LoraFactors(a, bs, self.scaling / self.dropout.kept_share, mask)

    def gate_up_factors(self, x_SH: Tensor) -> LoraFactors:
        """Factors of the fused gate and up projections for this input, with its dropout mask."""
        return self._factors(self.gate_up_A, (self.gate_B, self.up_B), x_SH, self.site)

    def down_factors(self, x_SI: Tensor) -> LoraFactors:
        """Factors of the down projection for this input, with its dropout mask."""
        return self._factors(self.down_A, (self.down_B,), x_SI, self.site + 1)


def fill_uniform(factor: Tensor, generator: torch.Generator) -> None:
    """Draw `factor` (…, R, fan-in) on CPU, so that every device starts from the same bits."""
    bound = 1 / math.sqrt(factor.shape[-1])
    drawn = torch.empty(factor.shape, dtype=torch.float32).uniform_(
        -bound, bound, generator=generator
    )
    with torch.no_grad():
        factor.copy_(drawn)


def dense(weight: Tensor | Nf4Weight, dtype: torch.dtype) -> Tensor:
    """The weight itself, decoded where it is in NF4."""
    return weight.dequantize(dtype) if isinstance(weight, Nf4Weight) else weight


def experts_forward(
    self: nn.Module, hidden_TH: Tensor, top_k_index_TK: Tensor, top_k_weights_TK: Tensor
) -> Tensor:
    """One layer's experts, with LoRA where the module carries a child named `lora`; returns (T, H).

    Signature and meaning as in transformers' ALL_EXPERTS_FUNCTIONS (integrations/moe.py, 5.17).
    """
    gate_up_proj = dense(self.gate_up_proj, hidden_TH.dtype)  # type: ignore[arg-type]
    down_proj = dense(self.down_proj, hidden_TH.dtype)  # type: ignore[arg-type]
    lora = getattr(self, "lora", None)
    routing = sort_by_expert(top_k_index_TK, gate_up_proj.shape[0])
    x_SH = to_experts(hidden_TH, routing)
    if isinstance(lora, ExpertLora):
        factors = lora.gate_up_factors(x_SH)
        gate_up_S2I = grouped_lora_linear(x_SH, gate_up_proj, routing.counts, factors)
    else:
        gate_up_S2I = grouped_linear(x_SH, gate_up_proj, routing.counts)
    gate_SI, up_SI = gate_up_S2I.chunk(2, dim=-1)
    inner_SI: Tensor = self.act_fn(gate_SI) * up_SI  # type: ignore[operator]
    if isinstance(lora, ExpertLora):
        factors = lora.down_factors(inner_SI)
        out_SH = grouped_lora_linear(inner_SI, down_proj, routing.counts, factors)
    else:
        out_SH = grouped_linear(inner_SI, down_proj, routing.counts)
    return to_tokens(out_SH, routing, top_k_weights_TK).to(hidden_TH.dtype)


ALL_EXPERTS_FUNCTIONS.register(BACKEND, experts_forward)
