"""What a step holds in the GPU's memory, and what each layer may keep of it for its backward.

Pure arithmetic on shapes, for the fused layers in 16 bits. Not here: keeping or computing again
(layer.py, fused.py), measuring (bench/).

Legend: T tokens of a packed row, S = T · experts per token, E experts, H hidden, I expert width, R
rank.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from mmar_jobs.errors import SettingsError
from mmar_jobs.qlora.recipes import Optimizer, Saved
from mmar_jobs.qlora.row_size import padded_tokens

Quantization = Literal["nf4", "none"]

# Each adds to the one before. A byte spent on a lower one saves more time: keeping gate_up's
# outputs saves their grouped product; attention's tensors are larger and save less.
LEVELS: Final = (Saved(), Saved(gate_up=True), Saved(gate_up=True, attention=True))
LOSS_CHUNK: Final = 1024  # tokens whose logits exist at once: 0.3 GB of 152,064 in bf16
_BF16: Final = 2
_FP32: Final = 4
_INT64: Final = 8
# bitsandbytes: half a byte a number, a byte of scale per 64, four bytes of scale per 64 · 256.
_NF4_BYTES: Final = 0.5 + 1 / 64 + 4 / (64 * 256)
# AdamW: two fp32 moments. Its 8-bit form: two bytes and, per 256 numbers, two fp32 scales.
_MOMENT_BYTES: Final[Mapping[Optimizer, float]] = {"adamw": 8.0, "adamw8bit": 2 + 8 / 256}
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

    `accumulates`: a step may have several rows in a process, so gradients of all layers live beside
    a row's activations. With one row, a layer's gradients appear when the activations of the layers
    above it are gone. `pages_optimizer`: its moments are in host memory. `tower_bytes`: weights of
    the audio tower.
    """

    rank: int
    optimizer: Optimizer
    quantization: Quantization
    accumulates: bool = True
    pages_optimizer: bool = False
    tower_bytes: int = 0


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What each layer keeps of rows of at most `token_budget` tokens, and the bytes by part.

    Those are of a step's fullest moment; `accumulates` as in Trained.
    """

    saved: tuple[Saved, ...]
    token_budget: int
    accumulates: bool
    parts: Mapping[str, int]
    budget_bytes: int

    @property
    def peak_bytes(self) -> int:
        """Sum of the parts, at most the budget."""
        return sum(self.parts.values())


def plan_memory(
    shape: ModelShape,
    tokens: int,
    budget_bytes: int,
    *,
    completion_tokens: int,
    trained: Trained,
) -> MemoryPlan:
    """Keep as much as the budget allows for rows of at most `tokens`, which are padded.

    A level goes to all layers before the next one to any, because a byte spent on a lower level
    saves more time; upper layers go first, because theirs are freed first. Raises SettingsError
    where not even level 0 fits.
    """
    memory = _Memory(shape, padded_tokens(tokens, tokens), completion_tokens, trained)
    levels = [0] * shape.num_layers
    parts = memory.peak(levels)
    smallest = sum(parts.values())
    if smallest > budget_bytes:
        raise SettingsError(_too_small(smallest, budget_bytes, tokens, trained))
    for level, layer in itertools.product(range(1, len(LEVELS)), reversed(range(len(levels)))):
        raised = [*levels[:layer], level, *levels[layer + 1 :]]
        more = memory.peak(raised)
        if sum(more.values()) > budget_bytes:
            break
        levels, parts = raised, more
    saved = tuple(LEVELS[level] for level in levels)
    return MemoryPlan(saved, tokens, trained.accumulates, parts, budget_bytes)


def _too_small(smallest: int, budget_bytes: int, tokens: int, trained: Trained) -> str:
    lower = ["the token budget", "the rank"]
    if trained.optimizer == "adamw":
        lower.append("the optimizer's state (adamw8bit)")
    if trained.quantization == "none":
        lower.append("the base's precision (nf4)")
    needed_gb = math.ceil(smallest / 1e8) / 10  # rounded down it would not do
    return (
        f"training rows of {tokens} tokens at rank {trained.rank} needs {needed_gb:.1f} GB, the "
        f"memory budget is {budget_bytes / 1e9:.1f} GB: lower {', '.join(lower)}, or raise the "
        "budget"
    )


class _Memory:
    """Bytes of one step by part."""

    def __init__(
        self, shape: ModelShape, tokens: int, completion_tokens: int, trained: Trained
    ) -> None:
        self._accumulates = trained.accumulates
        self._kept = list(itertools.accumulate(_kept_bytes(shape, tokens, trained.rank)))
        self._layer_gradients = shape.factors(trained.rank) * _FP32
        self._fixed = _fixed_bytes(shape, trained)
        experts = _experts_work_bytes(shape, tokens, trained.rank)
        attention = 2 * (self._kept[-1] - self._kept[-2])  # made again, and their gradients
        chunk = min(completion_tokens, LOSS_CHUNK)
        loss = (chunk * shape.vocabulary + 3 * completion_tokens * shape.hidden) * _BF16
        # The layers' graphs have a pool of their own, which lends nothing to what runs outside: the
        # loss; embeddings, the last norm (in fp32) and their gradients, 16 times a row's states.
        outside = loss + 16 * tokens * shape.hidden * _BF16
        self._work = max(experts, attention) + outside

    def peak(self, levels: Sequence[int]) -> dict[str, int]:
        """Parts at the fullest moment, some layer's backward; the loss has memory of its own."""
        kept = list(itertools.accumulate(self._kept[level] for level in levels))
        num_layers = len(levels)
        moments = [
            {
                "activations": kept[layer],
                # Those of a second row are made before they are added: one layer's more.
                "gradients": self._layer_gradients
                * (num_layers + 1 if self._accumulates else num_layers - layer),
            }
            for layer in range(num_layers)
        ]
        fullest = max(moments, key=lambda parts: sum(parts.values()))
        return {**self._fixed, **fullest, "work": self._work}


def _kept_bytes(shape: ModelShape, tokens: int, rank: int) -> tuple[int, ...]:
    """Bytes that each level adds in one layer, tensor by tensor as layer.py and fused.py do."""
    routed = tokens * shape.experts_per_token
    q, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    router = shape.num_experts * _FP32 + 2 * shape.experts_per_token * (_INT64 + _FP32)
    return (
        # The layer's input, the sum before the second norm, the experts' input; the router's
        # probabilities, the chosen experts and their weights, the rows' order.
        tokens * (3 * shape.hidden * _BF16 + router) + routed * (2 * _INT64),
        # gate_up's outputs and the inner columns of its LoRA.
        routed * (2 * shape.expert_width + 2 * rank) * _BF16,
        # qkv's input and o's with their inner columns; qkv before and after the rotation; what
        # attention returns and its log-sums.
        tokens * (shape.hidden + 3 * rank + q + rank + 2 * (q + 2 * kv) + q) * _BF16
        + tokens * shape.num_heads * _FP32,
    )


def _experts_work_bytes(shape: ModelShape, tokens: int, rank: int) -> int:
    """What the experts' backward holds at its fullest: in the middle of the down projection.

    Decoded weights with the Bs as columns; per routed row gate_up's outputs, three tensors of the
    expert's width, two of them with inner columns, one of the hidden size; and a few of the
    tokens' own gradients.
    """
    routed, width = tokens * shape.experts_per_token, shape.expert_width
    gate_up = 2 * width * (shape.hidden + 2 * rank)
    down = shape.hidden * (width + rank)
    rows = routed * (2 * width + 2 * rank + 4 * width + 2 * rank + shape.hidden)
    return (shape.num_experts * (gate_up + down) + rows + 4 * tokens * shape.hidden) * _BF16


def _fixed_bytes(shape: ModelShape, trained: Trained) -> dict[str, int]:
    """What is there whatever the row: base, tower, factors, optimizer, reserve."""
    quantized = shape.attention_weights + shape.num_experts * shape.expert_weights
    weight_bytes = _NF4_BYTES if trained.quantization == "nf4" else _BF16
    # Router and norms, then embeddings, head and the last norm.
    plain = shape.num_layers * ((shape.num_experts + 2) * shape.hidden + 2 * shape.head_dim)
    plain += (2 * shape.vocabulary + 1) * shape.hidden
    factors = shape.num_layers * shape.factors(trained.rank)
    moment_bytes = _MOMENT_BYTES[trained.optimizer]
    return {
        "base": round(shape.num_layers * quantized * weight_bytes) + plain * _BF16,
        "audio tower": trained.tower_bytes,
        "factors": factors * _FP32,
        "optimizer": 0 if trained.pages_optimizer else round(factors * moment_bytes),
        "reserve": _RESERVE_BYTES,
    }
