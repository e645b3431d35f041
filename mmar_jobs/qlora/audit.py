"""What of a model is quantised, wrapped, frozen and trained; refuses to train the wrong parts.

Not here: attaching LoRA, printing the table.
"""

import hashlib
import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import nn

from mmar_jobs.errors import GateError
from mmar_jobs.qlora.experts import ExpertLora
from mmar_jobs.qlora.foreign import Thinker
from mmar_jobs.qlora.lora import ATTENTION_PROJECTIONS, LoraLinear

_KINDS: Final = (
    ("LoRA of attention", r"model\.layers\.\d+\.self_attn\.\w+\.lora_[AB]"),
    ("LoRA of experts", r"model\.layers\.\d+\.mlp\.experts\.lora\.\w+"),
    ("audio tower", r"audio_tower\..*"),
    ("vision tower", r"visual\..*"),
    ("embeddings", r"model\.embed_tokens\..*"),
    ("lm_head", r"lm_head\..*"),
    ("router", r"model\.layers\.\d+\.mlp\.gate\..*"),
    ("experts", r"model\.layers\.\d+\.mlp\.experts\..*"),
    ("attention", r"model\.layers\.\d+\.self_attn\.[qkvo]_proj\..*"),
    ("norms", r".*norm.*"),
)
_OTHER: Final = "other"
_TRAINED_KINDS: Final = ("LoRA of attention", "LoRA of experts")


@dataclass(slots=True)
class AuditRow:
    """One kind of parameter.

    How many tensors and numbers, how many bytes, how many of each is trained or stored in fewer
    than 16 bits. `num_wrapped` counts the tensors that LoRA is added to.
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
    """The table, the projections without LoRA, and what is trained but must not be."""

    rows: tuple[AuditRow, ...]
    num_layers: int
    unwrapped: tuple[str, ...]
    wrongly_trained: tuple[str, ...]

    def row(self, kind: str) -> AuditRow:
        """The row of one kind; empty when the model has no such parameter."""
        return next((row for row in self.rows if row.kind == kind), AuditRow(kind))


def kind_of(name: str) -> str:
    """Kind of a parameter by its name in the thinker."""
    plain = name.replace(".base.", ".")
    return next((kind for kind, pattern in _KINDS if re.fullmatch(pattern, plain)), _OTHER)


def audit(model: Thinker) -> Audit:
    """Take stock of a thinker, with or without LoRA."""
    wrapped = _wrapped_parameters(model)
    table: dict[str, AuditRow] = defaultdict(lambda: AuditRow(""))
    wrongly_trained = []
    for name, parameter in model.named_parameters():
        kind = kind_of(name)
        row = table[kind]
        row.kind = kind
        row.num_tensors += 1
        row.num_parameters += parameter.numel()
        row.num_bytes += parameter.numel() * parameter.element_size()
        row.num_trained += parameter.numel() if parameter.requires_grad else 0
        row.num_quantised += 0 if parameter.is_floating_point() else parameter.numel()
        row.num_wrapped += name in wrapped
        row.dtypes.add(str(parameter.dtype).removeprefix("torch."))
        if parameter.requires_grad and kind not in _TRAINED_KINDS:
            wrongly_trained.append(name)
    return Audit(
        rows=tuple(table[kind] for kind, _ in (*_KINDS, (_OTHER, "")) if kind in table),
        num_layers=len(model.model.layers),
        unwrapped=tuple(_unwrapped(model)),
        wrongly_trained=tuple(wrongly_trained),
    )


def check_audit(found: Audit) -> None:
    """Raise GateError when a projection is missed, a factor frozen, or a wrong part trained."""
    if found.unwrapped:
        raise GateError(
            f"{len(found.unwrapped)} projections carry no LoRA, first {found.unwrapped[0]}: "
            "attach LoRA to all of attention and all experts"
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


def audio_tower_digest(model: Thinker) -> str:
    """SHA-256 over names and bytes of the audio tower; equal ones prove it untouched."""
    digest = hashlib.sha256()
    for name, parameter in model.audio_tower.state_dict().items():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _unwrapped(model: Thinker) -> list[str]:
    missing = []
    for index, layer in enumerate(model.model.layers):
        path = f"model.layers.{index}"
        missing += [
            f"{path}.self_attn.{name}"
            for name in ATTENTION_PROJECTIONS
            if not isinstance(layer.self_attn.get_submodule(name), LoraLinear)
        ]
        if not isinstance(getattr(layer.mlp.experts, "lora", None), ExpertLora):
            missing.append(f"{path}.mlp.experts")
    return missing


def _wrapped_parameters(model: nn.Module) -> set[str]:
    wrapped = set()
    for path, module in model.named_modules():
        if isinstance(module, LoraLinear):
            wrapped.add(f"{path}.base.weight")
        if isinstance(getattr(module, "lora", None), ExpertLora):
            wrapped |= {f"{path}.gate_up_proj", f"{path}.down_proj"}
    return wrapped
