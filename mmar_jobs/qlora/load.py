"""Loading a frozen thinker from a folder in the original file layout, every weight accounted for.

Not here: naming the folder (base_model.py), reading files (weight_files.py), NF4 itself (nf4.py),
the processor, saving. The vision tower is never fed, so it is not loaded. Weights go to the device
one by one and are quantised there: neither host nor device ever holds the unquantised experts, but
those of one layer.

Legend: E experts, O out-features, I in-features.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import Qwen3OmniMoeConfig, Qwen3OmniMoeThinkerForConditionalGeneration
from transformers.utils.logging import set_verbosity_error

from mmar_jobs.base_model import check_config
from mmar_jobs.errors import DataError, GateError
from mmar_jobs.qlora.experts import BACKEND
from mmar_jobs.qlora.foreign import Thinker
from mmar_jobs.qlora.lora import ATTENTION_PROJECTIONS
from mmar_jobs.qlora.memory import Quantization
from mmar_jobs.qlora.nf4 import Nf4Linear, Nf4Weight
from mmar_jobs.qlora.tensor_file import DTYPES
from mmar_jobs.qlora.weight_files import Stored, Wanted, read_ahead, read_stored

EXPERT_WEIGHTS: Final = ("gate_up_proj", "down_proj")
# Parts of the original that are left on disk, by the start of their names.
LEFT_OUT: Final = {
    "vision tower": "visual.",
    "talker": "talker.",
    "code2wav": "code2wav.",
}
_PREFIX: Final = "thinker."
_EXPERTS: Final = re.compile(r"(?P<experts>.*\.mlp\.experts)\.(?P<which>gate_up_proj|down_proj)")
_NUM_SHOWN: Final = 3

Index = EllipsisType | tuple[int | slice, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """Where a tensor of the files belongs: all of a weight of the thinker, or one expert's rows."""

    weight: str
    index: Index
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Outline:
    """A thinker on the meta device, and the stored tensors that fill it, in the order to read them.

    `left_out_bytes` is what the files hold beyond it, by LEFT_OUT's names.
    """

    model: Thinker
    wanted: tuple[Wanted[Piece], ...]
    left_out_bytes: Mapping[str, int]


def load_thinker(
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantization: Quantization = "none",
) -> Thinker:
    """Load text part and audio tower of a Qwen3-Omni folder: eval mode, every parameter frozen.

    With "nf4" experts are Nf4Weight and q, k, v, o are Nf4Linear, quantised from `dtype`;
    everything else is in `dtype`. Raises as `outline_thinker`, before a weight is read, GateError
    when one is not finite, and DataError when a file cannot be read.
    """
    outline = outline_thinker(folder, dtype=dtype, quantization=quantization)
    model = outline.model
    _fill(outline, dtype=dtype, device=device)
    _fill_buffers(model, device)
    model.tie_weights()
    unfilled = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    assert not unfilled, unfilled
    thinker: Thinker = model.requires_grad_(requires_grad=False).eval()
    return thinker


def outline_thinker(folder: Path, *, dtype: torch.dtype, quantization: Quantization) -> Outline:
    """The thinker of a folder without its weights, by config.json and the files' headers alone.

    Raises DataError when the folder holds no such model or its files are damaged, and GateError
    when a weight is missing, of another shape or not known: random numbers would take its place.
    """
    check_config(folder)
    model = _build(folder, dtype)
    if quantization == "nf4":
        place_nf4(model, _empty_nf4)
    stored = read_stored(folder)
    left_out_bytes = Counter[str]()
    kept: dict[str, Stored] = {}
    for name, tensor in stored.items():
        plain = name.removeprefix(_PREFIX)
        part = next((part for part, start in LEFT_OUT.items() if plain.startswith(start)), None)
        if part is not None:
            left_out_bytes[part] += tensor.slot.size_bytes
        elif plain in kept:
            raise GateError(f"{folder}: {plain} is there with and without {_PREFIX} before it")
        else:
            kept[plain] = tensor
    pieces = dict(_pieces(model))
    _check_complete(folder, pieces, kept)
    wanted = (Wanted(kept[name], piece) for name, piece in pieces.items())
    return Outline(model, tuple(_in_order(wanted)), dict(left_out_bytes))


def _build(folder: Path, dtype: torch.dtype) -> Thinker:
    """The class's own modules on the meta device."""
    set_verbosity_error()  # type: ignore[no-untyped-call] # what it says of configs is checked here
    config_class: Any = Qwen3OmniMoeConfig
    model_class: Any = Qwen3OmniMoeThinkerForConditionalGeneration
    try:
        config = config_class.from_pretrained(folder, local_files_only=True).thinker_config
        with torch.device("meta"):
            model = model_class._from_config(config, dtype=dtype)  # noqa: SLF001 - as AutoModel does
    except Exception as error:  # whatever the library meets in a config that it did not expect
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{folder} cannot be loaded as a Qwen3-Omni thinker: {reason}: copy config.json from "
            "the original again"
        ) from error
    del model.visual
    return model


def place_nf4(model: Thinker, make: Callable[[Tensor], Nf4Weight]) -> None:
    """Put NF4 weights, made from those that they replace, in the place of all projections."""
    for layer in model.model.layers:
        for name in ATTENTION_PROJECTIONS:
            linear = getattr(layer.self_attn, name)
            setattr(layer.self_attn, name, Nf4Linear(make(linear.weight), linear.bias))
        experts = getattr(layer.mlp, "experts", None)
        for name in EXPERT_WEIGHTS if experts is not None else ():
            weight = make(getattr(experts, name))
            delattr(experts, name)
            setattr(experts, name, weight)
    # The library's own backends need tensors; ours decodes.
    model.set_experts_implementation(BACKEND)


def _empty_nf4(like: Tensor) -> Nf4Weight:
    """What loading fills."""
    return Nf4Weight.empty(like.shape, like.dtype)


def _weights(model: nn.Module) -> Iterator[tuple[str, torch.Size]]:
    for name, parameter in model.named_parameters():
        yield name, parameter.shape
    for path, module in model.named_modules():
        if isinstance(module, Nf4Weight):
            yield path, module.shape


def _pieces(model: nn.Module) -> Iterator[tuple[str, Piece]]:
    """Every tensor that the files must hold, by its name without `thinker.`."""
    for weight, shape in _weights(model):
        fused = _EXPERTS.fullmatch(weight)
        if fused is None:
            yield weight, Piece(weight, ..., tuple(shape))
            continue
        num_experts, num_rows, num_columns = shape
        parts = {"down_proj": slice(0, num_rows)}
        if fused["which"] == "gate_up_proj":
            half = num_rows // 2
            parts = {"gate_proj": slice(0, half), "up_proj": slice(half, num_rows)}
        for expert in range(num_experts):
            for part, rows in parts.items():
                piece = Piece(weight, (expert, rows), (rows.stop - rows.start, num_columns))
                yield f"{fused['experts']}.{expert}.{part}.weight", piece


def _in_order(wanted: Iterable[Wanted[Piece]]) -> list[Wanted[Piece]]:
    """Layer by layer for the experts, so that one layer's are held at most; else as files go."""
    groups: dict[str, list[Wanted[Piece]]] = {}
    for one in wanted:
        fused = _EXPERTS.fullmatch(one.note.weight)
        groups.setdefault(fused["experts"] if fused else one.note.weight, []).append(one)
    ordered = sorted((sorted(group, key=_place) for group in groups.values()), key=_first_place)
    return [one for group in ordered for one in group]


def _place(wanted: Wanted[Piece]) -> tuple[Path, int]:
    return wanted.stored.path, wanted.stored.slot.start


def _first_place(group: list[Wanted[Piece]]) -> tuple[Path, int]:
    return _place(group[0])


def _check_complete(
    folder: Path, pieces: Mapping[str, Piece], stored: Mapping[str, Stored]
) -> None:
    """Raise GateError unless the files fill the thinker, no more and no less."""
    both = pieces.keys() & stored.keys()
    wrong = {
        "missing": pieces.keys() - stored.keys(),
        "of another shape than config.json says": {
            name for name in both if pieces[name].shape != stored[name].slot.shape
        },
        "not part of the model": stored.keys() - pieces.keys(),
        "not stored as 16 or 32-bit floating point numbers": {
            name for name in both if stored[name].slot.dtype not in DTYPES
        },
    }
    said = [
        f"{len(names)} weights are {what}, first {', '.join(sorted(names)[:_NUM_SHOWN])}"
        for what, names in wrong.items()
        if names
    ]
    if said:
        raise GateError(
            f"{folder}: {'; '.join(said)}: copy the model again, weights and config.json of one "
            "release"
        )


def _fill(outline: Outline, *, dtype: torch.dtype, device: torch.device) -> None:
    """Read every weight to its place."""
    shapes = dict(_weights(outline.model))
    left = Counter(one.note.weight for one in outline.wanted)
    begun: dict[str, Tensor] = {}
    for piece, tensor in read_ahead(outline.wanted):
        if isinstance(piece.index, EllipsisType):
            begun[piece.weight] = tensor.to(device, dtype)
        else:
            if piece.weight not in begun:
                begun[piece.weight] = torch.empty(shapes[piece.weight], dtype=dtype, device=device)
            begun[piece.weight][piece.index].copy_(tensor)
        left[piece.weight] -= 1
        if not left[piece.weight]:
            _set_weight(outline.model, piece.weight, begun.pop(piece.weight))


def _set_weight(model: nn.Module, weight: str, value: Tensor) -> None:
    if not math.isfinite(value.sum(dtype=torch.float32).item()):
        raise GateError(f"weight {weight} holds numbers that are not finite: copy the model again")
    path, _, name = weight.rpartition(".")
    parent = model.get_submodule(path)
    if isinstance(getattr(parent, name), Nf4Weight):
        setattr(parent, name, Nf4Weight.quantize(value))
    else:
        setattr(parent, name, nn.Parameter(value, requires_grad=False))


def _fill_buffers(model: Thinker, device: torch.device) -> None:
    """Compute what no file holds: rotary frequencies and the audio tower's positions.

    The class's own initialisation does it, on CPU, so that every device has the same bits.
    """
    for path, module in model.named_modules():
        if isinstance(module, Nf4Weight):
            continue
        names = [name for name, _ in module.named_buffers(recurse=False)]
        for name in names:
            like = getattr(module, name)
            setattr(module, name, torch.full(like.shape, math.nan, dtype=like.dtype))
        if names:
            model._init_weights(module)  # noqa: SLF001 - what from_pretrained calls
        for name in names:
            value = getattr(module, name)
            assert value.isfinite().all(), f"{path}.{name} is neither stored nor computed"
            setattr(module, name, value.to(device))
