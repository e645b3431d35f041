"""Merging an adapter into its base: W + scaling · B·A, in fp32, rounded once.

Not here: reading the adapter's files (export.py), loading the merged folder (load.py).

Legend: E experts, R rank, O out-features, I in-features (of one projection).
"""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmar_jobs.errors import DataError
from mmar_jobs.qlora.export import from_expert_fastest, read_adapter
from mmar_jobs.qlora.foreign import Thinker

_ATTENTION: Final = re.compile(r"base_model\.model\.(.*self_attn\.\w+)\.lora_A\.weight")
_EXPERTS: Final = re.compile(r"base_model\.model\.(.*mlp\.experts)\.lora_A\.weight")
_PART_OF_A_PAIR: Final = re.compile(
    r"base_model\.model\..*(self_attn\.\w+\.lora_B|mlp\.experts(\.base_layer\.lora_[AB]|\.lora_B))"
    r"\.weight"
)
_ORIGINAL_PREFIX: Final = "thinker."


@dataclass(frozen=True, slots=True)
class Pair:
    """One projection's factors: `a` (R, I), `b` (O, R)."""

    a: Tensor
    b: Tensor
    scaling: float

    def add_to(self, weight_OI: Tensor) -> Tensor:
        """The merged weight in the dtype it came in, computed in fp32."""
        delta_OI = self.b.to(weight_OI.device) @ self.a.to(weight_OI.device)
        return (weight_OI.float() + self.scaling * delta_OI).to(weight_OI.dtype)


def _expert_pairs(
    path: str, state: dict[str, Tensor], num_experts: int, scaling: float
) -> Iterator[tuple[str, Pair]]:
    a_gate_up = state[f"base_model.model.{path}.base_layer.lora_A.weight"]
    b_gate_up = state[f"base_model.model.{path}.base_layer.lora_B.weight"]
    a_down = state[f"base_model.model.{path}.lora_A.weight"]
    b_down = state[f"base_model.model.{path}.lora_B.weight"]
    gate_up_A = a_gate_up.reshape(num_experts, -1, a_gate_up.shape[-1])
    gate_up_B = from_expert_fastest(b_gate_up, num_experts)
    down_A = a_down.reshape(num_experts, -1, a_down.shape[-1])
    down_B = from_expert_fastest(b_down, num_experts)
    width = gate_up_B.shape[1] // 2
    for expert in range(num_experts):
        a, b = gate_up_A[expert], gate_up_B[expert]
        yield f"{path}.{expert}.gate_proj", Pair(a, b[:width], scaling)
        yield f"{path}.{expert}.up_proj", Pair(a, b[width:], scaling)
        yield f"{path}.{expert}.down_proj", Pair(down_A[expert], down_B[expert], scaling)


def read_pairs(folder: Path) -> dict[str, Pair]:
    """Factors of every projection by its original name without `thinker.` and `.weight`.

    Raises DataError for a folder without an adapter of this project's layout.
    """
    config, state = read_adapter(folder)
    scaling = config["lora_alpha"] / config["r"]
    pairs: dict[str, Pair] = {}
    try:
        for name, a in state.items():
            if match := _ATTENTION.fullmatch(name):
                pairs[match[1]] = Pair(a, state[name.replace("lora_A", "lora_B")], scaling)
            elif match := _EXPERTS.fullmatch(name):
                num_experts = a.shape[0] // config["r"]
                pairs |= dict(_expert_pairs(match[1], state, num_experts, scaling))
            elif not _PART_OF_A_PAIR.fullmatch(name):
                raise DataError(
                    f"{folder}: the adapter holds {name}, which no merge knows: train it again"
                )
    except KeyError as error:
        raise DataError(f"{folder}: the adapter lacks tensor {error}") from error
    if not pairs:
        raise DataError(f"{folder}: the adapter holds no projection that can be merged")
    return pairs


@torch.no_grad()
def merge_adapter(model: Thinker, adapter_folder: Path) -> None:
    """Add an exported adapter to a thinker's weights in place; the model must not carry LoRA."""
    pairs = read_pairs(adapter_folder)
    for index, layer in enumerate(model.model.layers):
        attention, experts = layer.self_attn, layer.mlp.experts
        if hasattr(experts, "lora"):
            raise DataError("the model already carries LoRA: detach it before merging")
        path = f"model.layers.{index}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            weight = attention.get_submodule(name).weight
            weight.copy_(_take(pairs, f"{path}.self_attn.{name}").add_to(weight))
        for expert in range(experts.gate_up_proj.shape[0]):
            gate, up = experts.gate_up_proj[expert].chunk(2, dim=0)
            down = experts.down_proj[expert]
            for name, weight in (("gate_proj", gate), ("up_proj", up), ("down_proj", down)):
                weight.copy_(_take(pairs, f"{path}.mlp.experts.{expert}.{name}").add_to(weight))
    _check_all_used(pairs)


def merge_to_folder(base_folder: Path, adapter_folder: Path, out_folder: Path) -> None:
    """Write a complete merged model folder: same files, names, shapes and dtypes as the base.

    One shard is in memory at a time; weights are written last. Raises DataError when the adapter
    names a projection that the base lacks.
    """
    pairs = read_pairs(adapter_folder)
    out_folder.mkdir(parents=True, exist_ok=True)
    shards = sorted(base_folder.glob("*.safetensors"))
    if not shards:
        raise DataError(f"{base_folder} holds no .safetensors file: give the base model's folder")
    for path in sorted(base_folder.iterdir()):
        if path.is_file() and path not in shards:
            shutil.copyfile(path, out_folder / path.name)
    for shard in shards:
        _merge_shard(shard, out_folder / shard.name, pairs)
    _check_all_used(pairs)


def _merge_shard(source: Path, target: Path, pairs: dict[str, Pair]) -> None:
    merged: dict[str, Tensor] = {}
    with safe_open(source, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - a file, not a dict
            tensor = file.get_tensor(name)
            projection = name.removeprefix(_ORIGINAL_PREFIX).removesuffix(".weight")
            pair = pairs.pop(projection, None)
            merged[name] = pair.add_to(tensor) if pair else tensor
    partial = target.with_name(f"{target.name}.partial")
    save_file(merged, partial, metadata={"format": "pt"})
    partial.rename(target)


def _take(pairs: dict[str, Pair], projection: str) -> Pair:
    if projection not in pairs:
        raise DataError(f"the adapter has nothing for {projection}: it is of another model")
    return pairs.pop(projection)


def _check_all_used(pairs: dict[str, Pair]) -> None:
    if pairs:
        raise DataError(
            f"the base lacks {len(pairs)} projections of the adapter, first {min(pairs)}"
        )
