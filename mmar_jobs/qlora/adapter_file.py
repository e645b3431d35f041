"""An adapter's two files, read one tensor at a time, and the layout of what is in them.

Not here: writing one, or loading one into a model that trains (export.py). Imports no transformers,
so that a merge starts in a second.

Layout of fused experts (peft 0.21, tuners/lora/layer.py ParamWrapper): lora_A is expert-slowest
(E·R, in), lora_B expert-fastest (out, R·E). gate and up are one parameter there, so their two pairs
become one of rank 2R: A = [A_gate; A_up], B block-diagonal, alpha doubled so that the scale stays.

Legend: E experts, R rank, O out-features.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from mmar_jobs.errors import DataError
from mmar_jobs.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from mmar_jobs.qlora.tensor_file import DTYPES, Slot, read_header, read_tensor

METADATA_KEY: Final = "mmar_jobs"
FORMAT_VERSION: Final = "1"
BASE_DIGEST: Final = "base_digest"
PREFIX: Final = "base_model.model."
# PEFT nests one wrapper per parameter of the experts module: gate_up_proj is the inner one.
INNER: Final = ".base_layer"


def expert_slowest(factor_ERI: Tensor) -> Tensor:
    """(E, R, in) -> (E·R, in): PEFT's lora_A."""
    return factor_ERI.reshape(-1, factor_ERI.shape[-1])


def expert_fastest(factor_EOR: Tensor) -> Tensor:
    """(E, O, R) -> (O, R·E): PEFT's lora_B."""
    num_experts, out, _ = factor_EOR.shape
    # As one matrix: torch transposes those 4 times faster than it permutes.
    return factor_EOR.reshape(num_experts, -1).t().contiguous().view(out, -1)


def from_expert_fastest(factor: Tensor, num_experts: int) -> Tensor:
    """(O, R·E) -> (E, O, R), contiguous; the inverse of expert_fastest."""
    return factor.reshape(-1, num_experts).t().contiguous().view(num_experts, factor.shape[0], -1)


@dataclass(frozen=True)
class AdapterFile:
    """An adapter folder, opened: config, header and metadata, tensors only when asked for."""

    folder: Path
    config: Mapping[str, Any]
    slots: Mapping[str, Slot]
    metadata: Mapping[str, str]

    def tensor(self, name: str, device: torch.device) -> Tensor:
        """One tensor; DataError when it is absent or holds NaN or infinity."""
        path = self.folder / ADAPTER_WEIGHTS
        with path.open("rb") as file:
            tensor = read_tensor(file, self.slots[name]).to(device)
        # One pass; isfinite().all() takes twice as long.
        if not tensor.sum(dtype=torch.float32).isfinite():
            raise DataError(f"{path}: {name} holds NaN or infinity: train this adapter again")
        return tensor


def open_adapter(folder: Path) -> AdapterFile:
    """Read config and header; DataError when there is no adapter, or its two files disagree."""
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        header = read_header(folder / ADAPTER_WEIGHTS)
        metadata = json.loads(header.metadata.get(METADATA_KEY, "{}"))
    except (DataError, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} holds no readable adapter: {error}") from error
    odd = [slot.name for slot in header.slots if slot.dtype not in DTYPES]
    if odd:
        raise DataError(f"{folder}: adapter tensor {odd[0]} is quantised: export it in bf16")
    known = {"format": FORMAT_VERSION, "rank": str(rank), "alpha": str(alpha)}
    for key, value in known.items():
        if metadata.get(key, value) != value:
            raise DataError(
                f"{folder}: {ADAPTER_WEIGHTS} was written with {key} {metadata[key]}, "
                f"{ADAPTER_CONFIG} or this version has {value}: take both files from one export"
            )
    return AdapterFile(folder, config, {slot.name: slot for slot in header.slots}, metadata)
