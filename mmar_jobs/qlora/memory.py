"""What a training step holds in memory, and which activations each layer may keep for its backward.

Pure arithmetic on shapes. Not here: keeping or recomputing them (layer.py), measuring.

Legend: T tokens of a packed row, S = T · experts per token, H hidden, I expert width, R rank.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from mmar_jobs.errors import SettingsError
from mmar_jobs.qlora.recipes import Optimizer

Quantization = Literal["nf4", "none"]

NUM_LEVELS: Final = 4
_BF16: Final = 2
_FP32: Final = 4
# bitsandbytes: half a byte a number, a byte of scale per 64, four bytes of scale per 64 · 256.
_NF4_BYTES: Final = 0.5 + 1 / 64 + 4 / (64 * 256)
# AdamW: two fp32 moments. Its 8-bit form: two bytes and, per 256 numbers, two fp32 scales.
_MOMENT_BYTES: Final[Mapping[Optimizer, float]] = {"adamw": 8.0, "adamw8bit": 2 + 8 / 256}
_LOSS_CHUNK: Final = 1024
# CUDA context, cuBLAS workspaces, and what the allocator cannot hand out again.
_RESERVE_BYTES: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a thinker's text part."""

    num_layers: int
    hidden: int
    num_experts: int
    experts_per_token: int
    expert_width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> "ModelShape":
        """Shape of a transformers Qwen3OmniMoeTextConfig."""
        return cls(
            num_layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            num_experts=config.num_experts,
            experts_per_token=config.num_experts_per_tok,
            expert_width=config.moe_intermediate_size,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            vocabulary=config.vocab_size,
        )

    @property
    def attention_weights(self) -> int:
        """Numbers of q, k, v and o of one layer."""
        return 2 * self.hidden * self.head_dim * (self.num_heads + self.num_kv_heads)

    @property
    def expert_weights(self) -> int:
        """Numbers of gate, up and down of one expert."""
        return 3 * self.hidden * self.expert_width

    def attention_factors(self, rank: int) -> int:
        """Numbers of the LoRA factors of q, k, v and o of one layer."""
        widths = self.head_dim * (self.num_heads + self.num_kv_heads)
        return 2 * rank * (2 * self.hidden + widths)

    def expert_factors(self, rank: int) -> int:
        """Numbers of the LoRA factors of gate, up and down of one expert, an A for each."""
        return 3 * rank * (self.hidden + self.expert_width)

    def factors(self, rank: int) -> int:
        """Numbers of the LoRA factors of one layer."""
        return self.attention_factors(rank) + self.num_experts * self.expert_factors(rank)


@dataclass(frozen=True, slots=True)
class Trained:
    """What is trained and how: it settles what stays in memory whatever the row.

    `accumulates`: a step has several rows, so gradients of all layers live beside a row's
    activations. With one row, a layer's gradients appear when the activations of the layers above
    it are gone.
    """

    rank: int
    optimizer: Optimizer
    quantization: Quantization
    accumulates: bool = True


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """`levels[l]` is what layer l keeps; `parts` adds up to `peak_bytes` <= `budget_bytes`.

    Level 0: the layer's input. 1: and gate_up's output and the LoRA inners of the experts. 2: and
    attention's inputs and outputs. 3: and the sorted inputs of the experts.
    """

    levels: tuple[int, ...]
    parts: dict[str, int]
    budget_bytes: int

    @property
    def peak_bytes(self) -> int:
        """Predicted bytes at the fullest moment of a step."""
        return sum(self.parts.values())


def plan_memory(
    shape: ModelShape,
    tokens: int,
    budget_bytes: int,
    *,
    completion_tokens: int,
    trained: Trained,
) -> MemoryPlan:
    """Keep as much as the budget allows for rows of at most `tokens`.

    Level 1 goes to all layers before level 2 to any, because a byte spent on a lower level saves
    more time; upper layers go first, because theirs are freed first. Raises SettingsError where
    not even level 0 fits.
    """
    memory = _Memory(shape, tokens, completion_tokens, trained)
    levels = [0] * shape.num_layers
    parts = memory.peak(levels)
    smallest = sum(parts.values())
    if smallest > budget_bytes:
        raise SettingsError(_too_small(smallest, budget_bytes, tokens, trained))
    for level in range(1, NUM_LEVELS):
        for layer in reversed(range(shape.num_layers)):
            raised = [*levels[:layer], level, *levels[layer + 1 :]]
            more = memory.peak(raised)
            if sum(more.values()) > budget_bytes:
                return MemoryPlan(tuple(levels), parts, budget_bytes)
            levels, parts = raised, more
    return MemoryPlan(tuple(levels), parts, budget_bytes)


def _too_small(smallest: int, budget_bytes: int, tokens: int, trained: Trained) -> str:
    lower = ["the token budget", "the rank"]
    if trained.optimizer == "adamw":
        lower.append("the optimizer's state (adamw8bit)")
    if trained.quantization == "none":
        lower.append("the base's precision (nf4)")
    return (
        f"training rows of {tokens} tokens at rank {trained.rank} needs {smallest / 1e9:.1f} GB, "
        f"the memory budget is {budget_bytes / 1e9:.1f} GB: lower {', '.join(lower)}, or raise the "
        "budget"
    )


class _Memory:
    """Bytes of one step by part."""

    def __init__(
        self, shape: ModelShape, tokens: int, completion_tokens: int, trained: Trained
    ) -> None:
        self._shape, self._trained = shape, trained
        self._tokens, self._completion_tokens = tokens, completion_tokens
        routed = tokens * shape.experts_per_token
        self._kept = _kept_bytes(shape, tokens, routed, trained.rank)
        self._layer_gradients = shape.factors(trained.rank) * _FP32
        self._fixed = _fixed_bytes(shape, trained)
        self._layer_work = self._layer_work_bytes(routed)
        # Logits, log-probabilities and their gradient of one chunk; hidden states and theirs.
        chunk = min(completion_tokens, _LOSS_CHUNK)
        self._loss_work = chunk * shape.vocabulary * (2 * _FP32 + 2 * _BF16)
        self._loss_work += 2 * completion_tokens * shape.hidden * _BF16

    def _layer_work_bytes(self, routed: int) -> int:
        """What one layer's recomputation and backward hold for a moment."""
        shape = self._shape
        weights = shape.num_experts * shape.expert_weights
        decoded = weights * _BF16 if self._trained.quantization == "nf4" else 0
        cast_factors = shape.factors(self._trained.rank) * _BF16
        recomputed = sum(self._kept)
        # Gradients of the experts' outputs and inputs, of gate_up's output, and the activation.
        flowing = routed * (2 * shape.hidden + 3 * shape.expert_width) * _BF16
        return decoded + cast_factors + recomputed + flowing

    def peak(self, levels: Sequence[int]) -> dict[str, int]:
        """Parts at the fullest moment: the loss, or some layer's backward."""
        kept = [sum(self._kept[: level + 1]) for level in levels]
        work = {"work": max(self._layer_work, self._loss_work)}
        if self._trained.accumulates:
            gradients = len(levels) * self._layer_gradients
            moment = {"activations": sum(kept), "gradients": gradients}
            return {**self._fixed, **moment, **work}
        moments = [
            {
                "activations": sum(kept[: layer + 1]),
                "gradients": (len(levels) - layer) * self._layer_gradients,
            }
            for layer in range(len(levels))
        ]
        return {**self._fixed, **max(moments, key=lambda parts: sum(parts.values())), **work}


def _kept_bytes(shape: ModelShape, tokens: int, routed: int, rank: int) -> tuple[int, ...]:
    """Bytes that each level adds in one layer."""
    attention = 2 * shape.head_dim * (shape.num_heads + shape.num_kv_heads) + 4 * rank
    return (
        tokens * shape.hidden * _BF16,
        routed * (2 * shape.expert_width + 3 * rank) * _BF16,
        tokens * (attention * _BF16 + shape.num_heads * _FP32),
        routed * shape.hidden * _BF16,
    )


def _fixed_bytes(shape: ModelShape, trained: Trained) -> dict[str, int]:
    """What is there whatever the row: base, factors, optimizer, reserve."""
    quantized = shape.attention_weights + shape.num_experts * shape.expert_weights
    weight_bytes = _NF4_BYTES if trained.quantization == "nf4" else _BF16
    plain = shape.num_layers * (shape.num_experts + 2) * shape.hidden
    plain += (2 * shape.vocabulary + 1) * shape.hidden
    factors = shape.num_layers * shape.factors(trained.rank)
    return {
        "base": round(shape.num_layers * quantized * weight_bytes) + plain * _BF16,
        "factors": factors * _FP32,
        "optimizer": round(factors * _MOMENT_BYTES[trained.optimizer]),
        "reserve": _RESERVE_BYTES,
    }
