"""Bases of several shards and adapters for them, which the tests of merging share."""

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmar_jobs.base_model import model_digest
from mmar_jobs.cli import run_command
from mmar_jobs.qlora.export import export_adapter
from mmar_jobs.qlora.lora import LoraModel
from tests import qlora_cases

NUM_SHARDS = 4
INDEX = "model.safetensors.index.json"


def sharded_base(
    folder: Path, *, dtype: torch.dtype = torch.float32, num_shards: int = NUM_SHARDS
) -> Path:
    """The tiny base in several shards with an index; the first layer's experts span two of them.

    Text weights are in `dtype`, everything else stays as it is.
    """
    folder.mkdir(parents=True)
    tensors: dict[str, Tensor] = {}
    for path in sorted(qlora_cases.base_folder().iterdir()):
        if path.suffix == ".safetensors":
            tensors |= load_file(path)
        else:
            shutil.copyfile(path, folder / path.name)
    names = sorted(tensors, key=lambda name: ("layers.0.mlp.experts" not in name, name))
    experts = sum("layers.0.mlp.experts" in name for name in names)
    cuts = [0, experts // 2, *(experts // 2 + 40 * i for i in range(1, num_shards - 1)), len(names)]
    weight_map = {}
    for index, (start, end) in enumerate(pairwise(cuts), 1):
        shard = f"model-{index:05d}-of-{num_shards:05d}.safetensors"
        held = {name: _cast(name, tensors[name], dtype) for name in names[start:end]}
        save_file(held, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(held, shard)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2))
    return folder


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if name.startswith("thinker.model.") else tensor


def adapter_for(
    base: Path, folder: Path, *, change: Callable[[LoraModel], None] | None = None
) -> Path:
    """An exported adapter that says it was trained on `base`."""
    lora = qlora_cases.adapted()
    if change is not None:
        with torch.no_grad():
            change(lora)
    export_adapter(lora, folder, "tiny", metadata={"base_digest": model_digest(base)})
    return folder


def all_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a model folder."""
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def all_bytes(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def merge(*arguments: object) -> int:
    """Run the command in this process."""
    return run_command("merge", [str(argument) for argument in arguments])
