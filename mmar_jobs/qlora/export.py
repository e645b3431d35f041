"""Adapters as files, in the layout that PEFT and vLLM read, and back.

Not here: merging an adapter into a base (merge.py).

PEFT's layout of fused experts (peft 0.21, tuners/lora/layer.py ParamWrapper): lora_A is
expert-slowest (E·R, in), lora_B expert-fastest (out, R·E). gate and up are one parameter there, so
their two pairs become one of rank 2R: A = [A_gate; A_up], B block-diagonal, alpha doubled so that
the scale stays.

Legend: E experts, R rank, H hidden, I expert width, O out-features.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmar_jobs.errors import DataError
from mmar_jobs.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from mmar_jobs.qlora.experts import ExpertLora
from mmar_jobs.qlora.lora import LoraLinear, LoraModel

METADATA_KEY: Final = "mmar_jobs"
_PREFIX: Final = "base_model.model."
_GATE_UP: Final = "mlp.experts.gate_up_proj"
_DOWN: Final = "mlp.experts.down_proj"
# PEFT nests one wrapper per parameter of the experts module: gate_up_proj is the inner one.
_INNER: Final = ".base_layer"


def expert_slowest(factor_ERI: Tensor) -> Tensor:
    """(E, R, in) -> (E·R, in): PEFT's lora_A."""
    return factor_ERI.reshape(-1, factor_ERI.shape[-1])


def expert_fastest(factor_EOR: Tensor) -> Tensor:
    """(E, O, R) -> (O, R·E): PEFT's lora_B."""
    return factor_EOR.permute(1, 2, 0).reshape(factor_EOR.shape[1], -1)


def from_expert_fastest(factor: Tensor, num_experts: int) -> Tensor:
    """(O, R·E) -> (E, O, R), the inverse of expert_fastest."""
    return factor.reshape(factor.shape[0], -1, num_experts).permute(2, 0, 1)


def block_diagonal(gate_EIR: Tensor, up_EIR: Tensor) -> Tensor:
    """(E, I, R) twice -> (E, 2I, 2R) with zeros off the blocks."""
    zero_EIR = torch.zeros_like(gate_EIR)
    return torch.cat(
        (torch.cat((gate_EIR, zero_EIR), dim=2), torch.cat((zero_EIR, up_EIR), dim=2)), dim=1
    )


def _expert_state(path: str, lora: ExpertLora) -> dict[str, Tensor]:
    gate_up_B = block_diagonal(lora.gate_B, lora.up_B)
    return {
        f"{_PREFIX}{path}{_INNER}.lora_A.weight": expert_slowest(lora.gate_up_A),
        f"{_PREFIX}{path}{_INNER}.lora_B.weight": expert_fastest(gate_up_B),
        f"{_PREFIX}{path}.lora_A.weight": expert_slowest(lora.down_A),
        f"{_PREFIX}{path}.lora_B.weight": expert_fastest(lora.down_B),
    }


def adapter_state(lora: LoraModel) -> dict[str, Tensor]:
    """All tensors of the adapter in PEFT's names and shapes, fp32 on CPU."""
    state: dict[str, Tensor] = {}
    for path, site in lora.sites.items():
        if isinstance(site, ExpertLora):
            state |= _expert_state(path, site)
            continue
        state[f"{_PREFIX}{path}.lora_A.weight"] = site.lora_A
        state[f"{_PREFIX}{path}.lora_B.weight"] = site.lora_B
    return {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(state.items())}


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

    `metadata` (run, iteration, digests) goes into the safetensors header. The weights come last: a
    folder that has them is complete. Dropout is a matter of training and is 0 in the config: PEFT
    refuses another rate on expert parameters.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = json.dumps(_adapter_config(lora, base_name), indent=2, sort_keys=True)
    (folder / ADAPTER_CONFIG).write_text(config + "\n", encoding="utf-8")
    # One header key: safetensors writes several in an order that changes between runs.
    header = {METADATA_KEY: json.dumps(dict(metadata or {}), sort_keys=True)}
    partial = folder / f"{ADAPTER_WEIGHTS}.partial"
    save_file(adapter_state(lora), partial, metadata=header)
    partial.rename(folder / ADAPTER_WEIGHTS)


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of an adapter folder; DataError when it holds none."""
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"{folder} holds no readable adapter: {error}") from error
    return config, state


def _load_site(site: LoraLinear | ExpertLora, path: str, state: dict[str, Tensor]) -> None:
    a, b = state.pop(f"{_PREFIX}{path}.lora_A.weight"), state.pop(f"{_PREFIX}{path}.lora_B.weight")
    if isinstance(site, LoraLinear):
        site.lora_A.copy_(a)
        site.lora_B.copy_(b)
        return
    num_experts, width, rank = site.gate_B.shape
    site.down_A.copy_(a.reshape(site.down_A.shape))
    site.down_B.copy_(from_expert_fastest(b, num_experts))
    inner_a = state.pop(f"{_PREFIX}{path}{_INNER}.lora_A.weight")
    inner_b = state.pop(f"{_PREFIX}{path}{_INNER}.lora_B.weight")
    site.gate_up_A.copy_(inner_a.reshape(site.gate_up_A.shape))
    blocks = from_expert_fastest(inner_b, num_experts)
    site.gate_B.copy_(blocks[:, :width, :rank])
    site.up_B.copy_(blocks[:, width:, rank:])
    if blocks[:, :width, rank:].any() or blocks[:, width:, :rank].any():
        raise DataError(f"{path}: gate and up share rank in this adapter, ours keep them apart")


@torch.no_grad()
def load_adapter(lora: LoraModel, folder: Path) -> None:
    """Copy an exported adapter's factors into `lora`, to go on from a parent; bit-exact.

    Raises DataError when rank, alpha, shapes or the set of projections differ.
    """
    config, state = read_adapter(folder)
    recipe = lora.recipe
    if (config["r"], config["lora_alpha"]) != (recipe.rank, recipe.alpha):
        raise DataError(
            f"{folder} has rank {config['r']} and alpha {config['lora_alpha']}, the recipe has "
            f"rank {recipe.rank} and alpha {recipe.alpha}: train with the parent's"
        )
    try:
        for path, site in lora.sites.items():
            _load_site(site, path, state)
    except (KeyError, RuntimeError) as error:
        raise DataError(f"{folder} does not fit this model: {error}") from error
    if state:
        raise DataError(
            f"{folder} holds {len(state)} tensors for no projection, first {min(state)}"
        )
