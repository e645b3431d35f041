"""Writing adapters that PEFT and vLLM read, and loading one into a model that goes on from it.

Not here: the layout of the experts' factors (adapter_file.py), merging (merge.py). One tensor is in
memory at a time.

The block-diagonal zeros of gate and up are 0.6 of 4.0 billion numbers at the shape of the 30B
model; neither reader has a layout without them (vLLM reads per-expert pairs of such a model only
behind --enable-mixed-moe-lora-format, PEFT wraps whole parameters).

vLLM reads the same names (read in the released sources of 0.28 to 0.32, vllm/lora):
- 0.28 refuses LoRA for Qwen3-Omni; from 0.29 on the thinker has is_3d_moe_weight = True and
  _stack_moe_lora_weights takes `experts.base_layer` as gate_up_proj, `experts` as down_proj,
  reshapes A to (E, R, in) and B to (out, R, E), as PEFT does.
- Its WeightsMapper maps `model.` as well as `thinker.model.` to `language_model.model.`, so the
  names that PEFT wants on the thinker class, base_model.model.model.layers..., serve both.
- 0.29 to 0.31 know no rank_pattern and no alpha_pattern: every module is scaled by lora_alpha / r.
  So alpha must be doubled together with the rank, and is; 0.32 applies the patterns.
- --max-lora-rank must be at least 2R: 0.32 says so, before that the copy into a buffer fails.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from mmar_jobs.errors import DataError
from mmar_jobs.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from mmar_jobs.qlora.adapter_file import (
    FORMAT_VERSION,
    INNER,
    METADATA_KEY,
    PREFIX,
    AdapterFile,
    expert_fastest,
    expert_slowest,
    from_expert_fastest,
    open_adapter,
)
from mmar_jobs.qlora.experts import ExpertLora
from mmar_jobs.qlora.lora import LoraLinear, LoraModel
from mmar_jobs.qlora.tensor_file import write_tensors
from mmar_jobs.store import disk

_GATE_UP: Final = "mlp.experts.gate_up_proj"
_DOWN: Final = "mlp.experts.down_proj"

# A tensor of the file: its shape, and a function that makes it from the factors.
_Part = tuple[tuple[int, ...], Callable[[], Tensor]]


def block_diagonal(gate_EIR: Tensor, up_EIR: Tensor) -> Tensor:
    """(E, I, R) twice -> (E, 2I, 2R) with zeros off the blocks."""
    zero_EIR = torch.zeros_like(gate_EIR)
    return torch.cat(
        (torch.cat((gate_EIR, zero_EIR), dim=2), torch.cat((zero_EIR, up_EIR), dim=2)), dim=1
    )


def _expert_parts(path: str, lora: ExpertLora) -> Iterator[tuple[str, _Part]]:
    num_experts, width, rank = lora.gate_B.shape
    hidden = lora.down_B.shape[1]
    yield (
        f"{path}{INNER}.lora_A",
        ((2 * rank * num_experts, hidden), lambda: expert_slowest(lora.gate_up_A)),
    )
    yield (
        f"{path}{INNER}.lora_B",
        (
            (2 * width, 2 * rank * num_experts),
            lambda: expert_fastest(block_diagonal(lora.gate_B, lora.up_B)),
        ),
    )
    yield (
        f"{path}.lora_A",
        ((rank * num_experts, width), lambda: expert_slowest(lora.down_A)),
    )
    yield (
        f"{path}.lora_B",
        ((hidden, rank * num_experts), lambda: expert_fastest(lora.down_B)),
    )


def _linear_parts(path: str, lora: LoraLinear) -> Iterator[tuple[str, _Part]]:
    yield f"{path}.lora_A", (tuple(lora.lora_A.shape), lambda: lora.lora_A)
    yield f"{path}.lora_B", (tuple(lora.lora_B.shape), lambda: lora.lora_B)


def _parts(lora: LoraModel) -> dict[str, _Part]:
    found: dict[str, _Part] = {}
    for path, site in sorted(lora.sites.items()):
        named = (
            _expert_parts(path, site) if isinstance(site, ExpertLora) else _linear_parts(path, site)
        )
        found |= {f"{PREFIX}{name}.weight": part for name, part in named}
    return found


def _adapter_config(lora: LoraModel, base_name: str) -> dict[str, Any]:
    from peft import LoraConfig  # noqa: PLC0415 - its import takes 2 s that only an export needs

    recipe = lora.recipe
    # Full paths: PEFT resolves a regex to leaf names, and q_proj alone hits the audio tower too.
    config = LoraConfig(
        base_model_name_or_path=base_name,
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # type: ignore[arg-type]
        lora_dropout=0.0,
        inference_mode=True,
        target_modules=[p for p, site in lora.sites.items() if isinstance(site, LoraLinear)],
        target_parameters=[_DOWN, _GATE_UP],
        rank_pattern={_GATE_UP.replace(".", r"\."): 2 * recipe.rank},
        alpha_pattern={_GATE_UP.replace(".", r"\."): 2 * recipe.alpha},
    )
    content: dict[str, Any] = config.to_dict()  # type: ignore[no-untyped-call]
    for name, value in content.items():
        content[name] = sorted(value) if isinstance(value, set) else value
    return content


def export_adapter(
    lora: LoraModel, folder: Path, base_name: str, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write adapter_config.json and adapter_model.safetensors; equal factors give equal bytes.

    `metadata` goes into the safetensors header, beside rank, alpha and the format's version; give
    run_id, iteration, base_digest (base_model.model_digest: merge refuses another base by it),
    parent_digest and recipe_digest. The factors are written in the dtype of the model's embeddings,
    that is bfloat16 for the 30B model: the merged weights are rounded to it anyway (see
    tests/test_qlora_export.py for what that costs). The weights come last: a folder that has them
    is complete. Dropout is a matter of training and is 0 in the config: PEFT refuses another rate
    on expert parameters.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = json.dumps(_adapter_config(lora, base_name), indent=2, sort_keys=True)
    (folder / ADAPTER_CONFIG).write_text(config + "\n", encoding="utf-8")
    recipe = lora.recipe
    known = {"format": FORMAT_VERSION, "rank": str(recipe.rank), "alpha": str(float(recipe.alpha))}
    # One header key: safetensors itself writes several in an order that changes between runs.
    header = {METADATA_KEY: json.dumps({**(metadata or {}), **known}, sort_keys=True)}
    parts = _parts(lora)
    target = folder / ADAPTER_WEIGHTS
    with disk.explained("write", str(target)), torch.no_grad():
        disk.replace_file(
            target,
            lambda file: write_tensors(
                file,
                {name: shape for name, (shape, _) in parts.items()},
                (make() for _, make in parts.values()),
                dtype=lora.model.get_input_embeddings().weight.dtype,
                metadata=header,
            ),
        )


def _load_linear(site: LoraLinear, path: str, adapter: AdapterFile) -> None:
    for name, factor in (("lora_A", site.lora_A), ("lora_B", site.lora_B)):
        factor.copy_(adapter.tensor(f"{PREFIX}{path}.{name}.weight", factor.device))


def _load_experts(site: ExpertLora, path: str, adapter: AdapterFile) -> None:
    num_experts, width, rank = site.gate_B.shape
    device = site.gate_B.device

    def read(name: str) -> Tensor:
        return adapter.tensor(f"{PREFIX}{path}{name}.weight", device)

    site.down_A.copy_(read(".lora_A").reshape(site.down_A.shape))
    site.down_B.copy_(from_expert_fastest(read(".lora_B"), num_experts))
    site.gate_up_A.copy_(read(f"{INNER}.lora_A").reshape(site.gate_up_A.shape))
    blocks = from_expert_fastest(read(f"{INNER}.lora_B"), num_experts)
    if blocks[:, :width, rank:].any() or blocks[:, width:, :rank].any():
        raise DataError(f"{path}: gate and up share rank in this adapter, ours keep them apart")
    site.gate_B.copy_(blocks[:, :width, :rank])
    site.up_B.copy_(blocks[:, width:, rank:])


@torch.no_grad()
def load_adapter(lora: LoraModel, folder: Path) -> None:
    """Copy an exported adapter's factors into `lora`, to go on from a parent; exactly its values.

    Raises DataError when rank, alpha, shapes or the set of projections differ, or a factor is NaN.
    """
    adapter = open_adapter(folder)
    config, recipe = adapter.config, lora.recipe
    if (config["r"], config["lora_alpha"]) != (recipe.rank, recipe.alpha):
        raise DataError(
            f"{folder} has rank {config['r']} and alpha {config['lora_alpha']}, the recipe has "
            f"rank {recipe.rank} and alpha {recipe.alpha}: train with the parent's"
        )
    _check_shapes(adapter, {name: shape for name, (shape, _) in _parts(lora).items()})
    for path, site in lora.sites.items():
        if isinstance(site, ExpertLora):
            _load_experts(site, path, adapter)
        else:
            _load_linear(site, path, adapter)


def _check_shapes(adapter: AdapterFile, shapes: Mapping[str, tuple[int, ...]]) -> None:
    folder, slots = adapter.folder, adapter.slots
    over = sorted(slots.keys() - shapes.keys())
    if over:
        raise DataError(f"{folder} holds {len(over)} tensors for no projection, first {over[0]}")
    for name, shape in shapes.items():
        if name not in slots:
            raise DataError(f"{folder} does not fit this model: it lacks {name}")
        if slots[name].shape != shape:
            raise DataError(
                f"{folder} does not fit this model: {name} has shape {list(slots[name].shape)}, "
                f"the model needs {list(shape)}"
            )
