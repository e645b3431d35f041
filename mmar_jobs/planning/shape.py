"""The shape of a model in numbers: parameters that are stored, used a token, and trained.

Not here: weights. Source of the default: the configuration of Qwen3-Omni-30B-A3B-Thinking.
"""

import json
from pathlib import Path
from typing import Any, Final

from pydantic import Field, ValidationError

from mmar_jobs.base_model import check_config
from mmar_jobs.errors import DataError
from mmar_jobs.records import Record


class Shape(Record):
    """The thinker's text part; the audio tower adds little to any cost and is frozen."""

    num_layers: int = Field(ge=1)
    hidden: int = Field(ge=1)
    num_experts: int = Field(ge=1)
    experts_per_token: int = Field(ge=1)
    expert_width: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    num_kv_heads: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    vocabulary: int = Field(ge=1)

    @property
    def active_parameters(self) -> int:
        """Parameters that one token meets: attention, its experts, the head."""
        experts = self.experts_per_token * 3 * self.hidden * self.expert_width
        return self.num_layers * (self._attention + experts) + self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All of the text part, embeddings and head included."""
        experts = self.num_experts * 3 * self.hidden * self.expert_width
        return self.num_layers * (self._attention + experts) + 2 * self.vocabulary * self.hidden

    def trained_parameters(self, rank: int) -> int:
        """LoRA factors on attention and on every expert's gate, up and down projection."""
        per_expert = 3 * rank * (self.hidden + self.expert_width)
        return self.num_layers * (self._attention_lora(rank) + self.num_experts * per_expert)

    def exported_parameters(self, rank: int) -> int:
        """The adapter file: gate and up are one projection of twice the rank, half of B zeros."""
        gate_up = 2 * rank * (self.hidden + 2 * self.expert_width)
        down = rank * (self.hidden + self.expert_width)
        experts = self.num_experts * (gate_up + down)
        return self.num_layers * (self._attention_lora(rank) + experts)

    @property
    def _attention(self) -> int:
        return self.hidden * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)

    def _attention_lora(self, rank: int) -> int:
        query, key = self.head_dim * self.num_heads, self.head_dim * self.num_kv_heads
        return rank * 2 * ((self.hidden + query) + (self.hidden + key))


REFERENCE: Final = Shape(
    num_layers=48,
    hidden=2048,
    num_experts=128,
    experts_per_token=8,
    expert_width=768,
    num_heads=32,
    num_kv_heads=4,
    head_dim=128,
    vocabulary=152_064,
)


def read_shape(folder: Path) -> Shape:
    """The shape in a model folder's config.json; DataError where it is not a whole one."""
    check_config(folder)
    config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = config["thinker_config"]["text_config"]
    names = {
        "num_layers": "num_hidden_layers",
        "hidden": "hidden_size",
        "num_experts": "num_experts",
        "experts_per_token": "num_experts_per_tok",
        "expert_width": "moe_intermediate_size",
        "num_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "vocabulary": "vocab_size",
    }
    try:
        return Shape.model_validate({name: text.get(key) for name, key in names.items()})
    except ValidationError as error:
        lacking = names[str(error.errors()[0]["loc"][0])]
        raise DataError(
            f"{folder}/config.json has no usable thinker_config.text_config.{lacking}: copy it "
            "from the original again"
        ) from None
