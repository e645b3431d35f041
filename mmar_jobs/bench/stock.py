"""The stock path that a user would pick today: transformers' grouped_mm experts and PEFT, in bf16.

Not here: our own path (train.py). Where the stock libraries lack something, ours is lent to them
(packed attention, the chunked loss), so that the ratio is a lower bound.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from mmar_jobs.qlora.attention import BACKEND, row_layout
from mmar_jobs.qlora.foreign import Thinker
from mmar_jobs.qlora.loss import linear_cross_entropy, token_coefficients
from mmar_jobs.qlora.optimizer import build_optimizer
from mmar_jobs.qlora.packing import PackedRow, TrainRow, pack
from mmar_jobs.qlora.recipes import TrainRecipe

_ATTENTION = r"model\.layers\.\d+\.self_attn\.(q|k|v|o)_proj"
_EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


class StockTrainer:
    """LoRA of PEFT on attention and fused experts, dropout 0 (it takes no other), checkpointing."""

    def __init__(self, model: Thinker, recipe: TrainRecipe, *, rank: int) -> None:
        self.model = model
        self.recipe = recipe
        model.set_experts_implementation("grouped_mm")
        model.model.config._attn_implementation = BACKEND  # noqa: SLF001 - transformers reads this
        config: Any = LoraConfig
        wrapped = get_peft_model(
            model,
            config(
                r=rank,
                lora_alpha=2 * rank,
                lora_dropout=0.0,
                target_modules=_ATTENTION,
                target_parameters=_EXPERTS,
            ),
        )
        self.factors = [factor for factor in wrapped.parameters() if factor.requires_grad]
        model.train()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.optimizer = build_optimizer(self.factors, recipe)

    def take_step(self, rows: Sequence[TrainRow], audio: Mapping[str, Tensor]) -> float:
        """Forward, backward and optimizer over `rows`; returns the loss in nats."""
        coefficients = token_coefficients(
            [row.weight for row in rows], [row.num_labels for row in rows], self.recipe.weighting
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        for packed in pack(rows, self.recipe.token_budget):
            part = self._row_loss(rows, packed, audio, coefficients)
            part.backward()  # type: ignore[no-untyped-call]
            loss += float(part.detach())
        torch.nn.utils.clip_grad_norm_(self.factors, self.recipe.max_grad_norm)
        self.optimizer.step()
        return loss

    def _row_loss(
        self,
        rows: Sequence[TrainRow],
        packed: PackedRow,
        audio: Mapping[str, Tensor],
        coefficients: Sequence[float],
    ) -> Tensor:
        model, device = self.model, self.model.device
        input_ids_S = packed.input_ids_S.to(device)
        embeds_SH = model.model.embed_tokens(input_ids_S).detach()
        clips = [audio[rows[member].audio_sha256] for member in packed.members]
        embeds_SH[input_ids_S == model.config.audio_token_id] = torch.cat(clips).to(embeds_SH)
        out = model.model(
            inputs_embeds=embeds_SH[None],
            position_ids=packed.position_ids_41S.to(device),
            attention_mask=None,
            use_cache=False,
            row_layout=row_layout(packed.lengths, device),
        )
        coefficient_C = torch.tensor(coefficients, dtype=torch.float32)[packed.owner_C].to(device)
        loss, _ = linear_cross_entropy(
            out.last_hidden_state[0].index_select(0, packed.predict_C.to(device)),
            model.lm_head.weight,
            packed.target_C.to(device),
            coefficient_C,
        )
        return loss
