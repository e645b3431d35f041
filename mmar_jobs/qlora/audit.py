"""What of a model is quantised, wrapped, frozen and trained; refuses to train the wrong parts.

Not here: attaching LoRA, printing the table (audit_command.py).
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import nn

from mmar_jobs.errors import GateError
from mmar_jobs.qlora.experts import ExpertLora
from mmar_jobs.qlora.foreign import Thinker
from mmar_jobs.qlora.load import EXPERT_WEIGHTS
from mmar_jobs.qlora.lora import ATTENTION_PROJECTIONS, LoraLinear
from mmar_jobs.qlora.memory import Quantization
from mmar_jobs.qlora.nf4 import Nf4Weight

_VISION: Final = "vision tower"
_KINDS: Final = (
    ("LoRA of attention", r"model\.layers\.\d+\.self_attn\.\w+\.lora_[AB]"),
    ("LoRA of experts", r"model\.layers\.\d+\.mlp\.experts\.lora\.\w+"),
    ("audio tower", r"audio_tower\..*"),
    (_VISION, r"visual\..*"),
    ("embeddings", r"model\.embed_tokens\..*"),
    ("lm_head", r"lm_head\..*"),
    ("router", r"model\.layers\.\d+\.mlp\.gate\..*"),
    ("experts", r"model\.layers\.\d+\.mlp\.experts\..*"),
    ("attention", r"model\.layers\.\d+\.self_attn\.[qkvo]_proj\..*"),
    ("norms", r".*norm.*"),
)
_OTHER: Final = "other"
_TRAINED_KINDS: Final = ("LoRA of attention", "LoRA of experts")
_QUANTISED: Final = ("attention", "experts")
_PROJECTIONS_PER_LAYER: Final = len(ATTENTION_PROJECTIONS) + len(EXPERT_WEIGHTS)
_UNQUANTISED_BYTES: Final = 2


@dataclass(slots=True)
class AuditRow:
    """One kind of weight.

    How many tensors and numbers, how many bytes with their scales, how many numbers are trained or
    stored in fewer than 16 bits. `num_wrapped` counts the tensors that LoRA is added to.
    """

    kind: str
    num_tensors: int = 0
    num_parameters: int = 0
    num_bytes: int = 0
    num_trained: int = 0
    num_quantised: int = 0
    num_wrapped: int = 0
    dtypes: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Audit:
    """The table, and by name what is not as it must be.

    `unwrapped`: projections without LoRA. `unquantised`: those whose weight is not in NF4, all of
    them in a model that is not quantised. `wrongly_trained`: trained outside LoRA.
    `wrongly_wrapped`: factors of LoRA outside the projections.
    """

    rows: tuple[AuditRow, ...]
    num_layers: int
    unwrapped: tuple[str, ...]
    unquantised: tuple[str, ...]
    wrongly_trained: tuple[str, ...]
    wrongly_wrapped: tuple[str, ...]

    def row(self, kind: str) -> AuditRow:
        """The row of one kind; empty when the model has no such weight."""
        return next((row for row in self.rows if row.kind == kind), AuditRow(kind))

    @property
    def num_trained(self) -> int:
        """Numbers that are trained."""
        return sum(row.num_trained for row in self.rows)

    @property
    def num_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(row.num_bytes for row in self.rows)


def kind_of(name: str) -> str:
    """Kind of a weight by its name in the thinker."""
    plain = name.replace(".base.", ".")
    return next((kind for kind, pattern in _KINDS if re.fullmatch(pattern, plain)), _OTHER)


def audit(model: Thinker) -> Audit:
    """Take stock of a thinker, with or without LoRA, quantised or not, on any device."""
    wrapped = _wrapped_weights(model)
    table: dict[str, AuditRow] = defaultdict(lambda: AuditRow(""))
    wrongly_trained, wrongly_wrapped = [], []
    for weight in _weights(model):
        kind = kind_of(weight.name)
        row = table[kind]
        row.kind = kind
        row.num_tensors += 1
        row.num_parameters += weight.numel
        row.num_bytes += weight.num_bytes
        row.num_trained += weight.numel if weight.is_trained else 0
        row.num_quantised += weight.numel if weight.is_quantised else 0
        row.num_wrapped += weight.name in wrapped
        row.dtypes.add(weight.dtype)
        if kind in _TRAINED_KINDS:
            continue
        if weight.is_trained:
            wrongly_trained.append(weight.name)
        if ".lora" in weight.name:
            wrongly_wrapped.append(weight.name)
    return Audit(
        rows=tuple(table[kind] for kind, _ in (*_KINDS, (_OTHER, "")) if kind in table),
        num_layers=len(model.model.layers),
        unwrapped=tuple(_unwrapped(model)),
        unquantised=tuple(_unquantised(model)),
        wrongly_trained=tuple(wrongly_trained),
        wrongly_wrapped=tuple(wrongly_wrapped),
    )


def check_audit(found: Audit, quantization: Quantization | None = None) -> None:
    """Raise GateError when LoRA, training or quantisation is not exactly where it must be.

    Without `quantization` the projections may be in NF4 or not, but must be all alike.
    """
    if found.unwrapped:
        raise GateError(
            f"{len(found.unwrapped)} projections carry no LoRA, first {found.unwrapped[0]}: "
            "attach LoRA to all of attention and all experts"
        )
    if found.wrongly_wrapped:
        first = found.wrongly_wrapped[0]
        raise GateError(
            f"{len(found.wrongly_wrapped)} factors of LoRA are outside attention and experts, "
            f"first {first} ({kind_of(first)}): attach none there"
        )
    if found.wrongly_trained:
        first = found.wrongly_trained[0]
        raise GateError(
            f"{len(found.wrongly_trained)} parameters outside LoRA are trained, first {first} "
            f"({kind_of(first)}): freeze them"
        )
    for kind in _TRAINED_KINDS:
        row = found.row(kind)
        if row.num_trained != row.num_parameters:
            raise GateError(f"{row.num_parameters - row.num_trained} numbers of {kind} are frozen")
    _check_quantised(found, quantization)
    if found.row(_VISION).num_parameters:
        raise GateError("the vision tower is loaded: nothing is ever shown to it, leave it out")


def _check_quantised(found: Audit, quantization: Quantization | None) -> None:
    num_projections = found.num_layers * _PROJECTIONS_PER_LAYER
    num_quantised = num_projections - len(found.unquantised)
    if found.unquantised and (num_quantised or quantization == "nf4"):
        raise GateError(
            f"{len(found.unquantised)} of {num_projections} projections are not in NF4, first "
            f"{found.unquantised[0]}: quantise all of attention and all experts"
        )
    if num_quantised and quantization == "none":
        raise GateError(f"{num_quantised} projections are in NF4: quantization none was asked for")
    spoilt = [row.kind for row in found.rows if row.num_quantised and row.kind not in _QUANTISED]
    if spoilt:
        raise GateError(f"{', '.join(spoilt)}: stored in fewer than 16 bits, must not be")


def audio_tower_digest(model: Thinker) -> str:
    """SHA-256 over names and bytes of the audio tower; equal ones prove it untouched."""
    digest = hashlib.sha256()
    for name, parameter in model.audio_tower.state_dict().items():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class _Weight:
    """A parameter, or a weight in NF4, whose bytes are buffers."""

    name: str
    numel: int
    num_bytes: int
    dtype: str
    is_trained: bool
    is_quantised: bool


def _weights(model: nn.Module) -> Iterator[_Weight]:
    for name, parameter in model.named_parameters():
        yield _Weight(
            name,
            parameter.numel(),
            parameter.numel() * parameter.element_size(),
            str(parameter.dtype).removeprefix("torch."),
            is_trained=parameter.requires_grad,
            is_quantised=parameter.element_size() < _UNQUANTISED_BYTES,
        )
    for path, module in model.named_modules():
        if isinstance(module, Nf4Weight):
            yield _Weight(
                path, module.numel(), module.num_bytes, "nf4", is_trained=False, is_quantised=True
            )


def _unwrapped(model: Thinker) -> list[str]:
    missing = []
    for index, layer in enumerate(model.model.layers):
        path = f"model.layers.{index}"
        missing += [
            f"{path}.self_attn.{name}"
            for name in ATTENTION_PROJECTIONS
            if not isinstance(layer.self_attn.get_submodule(name), LoraLinear)
        ]
        experts = layer.mlp.experts
        lora, num_experts = getattr(experts, "lora", None), experts.gate_up_proj.shape[0]
        if not isinstance(lora, ExpertLora):
            missing.append(f"{path}.mlp.experts")
            continue
        missing += [
            f"{path}.mlp.experts.{expert} ({name})"
            for name, factor in lora.named_parameters()
            for expert in range(factor.shape[0], num_experts)
        ]
    return missing


def _unquantised(model: Thinker) -> list[str]:
    found = []
    for index, layer in enumerate(model.model.layers):
        path = f"model.layers.{index}"
        for name in ATTENTION_PROJECTIONS:
            linear = layer.self_attn.get_submodule(name)
            base = linear.base if isinstance(linear, LoraLinear) else linear
            if not isinstance(base.weight, Nf4Weight):
                found.append(f"{path}.self_attn.{name}")
        found += [
            f"{path}.mlp.experts.{name}"
            for name in EXPERT_WEIGHTS
            if not isinstance(getattr(layer.mlp.experts, name), Nf4Weight)
        ]
    return found


def _wrapped_weights(model: nn.Module) -> set[str]:
    wrapped = set()
    for path, module in model.named_modules():
        if isinstance(module, LoraLinear):
            wrapped.add(f"{path}.base.weight")
        if isinstance(getattr(module, "lora", None), ExpertLora):
            wrapped |= {f"{path}.{name}" for name in EXPERT_WEIGHTS}
    return wrapped
