"""Where training computes, and how much of a GPU's memory it may fill.

Not here: what fills it (memory.py).
"""

from typing import Final, Literal

import torch

from mmar_jobs.errors import SettingsError
from mmar_jobs.qlora.distributed import Workers
from mmar_jobs.qlora.lora import LoraModel
from mmar_jobs.qlora.memory import ModelShape, Quantization, Trained, plan_memory
from mmar_jobs.qlora.recipes import TrainRecipe

_GB: Final = 10**9
_RESERVE_BYTES: Final = 2 * _GB  # what other processes and the driver hold on a GPU


def choose_device(wanted: Literal["auto", "cpu", "cuda"], local_rank: int) -> torch.device:
    """This process's device; SettingsError for a GPU that is not there."""
    has_gpu = torch.cuda.is_available()
    if wanted == "cpu" or (wanted == "auto" and not has_gpu):
        return torch.device("cpu")
    num_gpus = torch.cuda.device_count()
    if local_rank >= num_gpus:
        raise SettingsError(
            f"process {local_rank} needs a GPU of its own, this machine shows {num_gpus}: lower "
            "--hardware.processes (or torchrun's), or choose --hardware.device cpu"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def memory_limit(memory_gb: float, device: torch.device) -> int | None:
    """Bytes of the GPU that may be filled, None on a CPU; 0 GB stands for nearly all there are."""
    if device.type != "cuda":
        return None
    total = torch.cuda.get_device_properties(device).total_memory
    asked = round(memory_gb * _GB)
    if asked > total:
        raise SettingsError(
            f"--hardware.memory-gb {memory_gb:g} is more than the GPU has ({total / _GB:.1f})"
        )
    return asked or total - _RESERVE_BYTES


def choose_saved(
    lora: LoraModel,
    recipe: TrainRecipe,
    *,
    limit_bytes: int | None,
    quantization: Quantization,
    workers: Workers,
) -> None:
    """Let every layer keep as many activations as fit into `limit_bytes`; nothing to do on a CPU.

    Raises SettingsError where the smallest training does not fit.
    """
    if limit_bytes is None:
        return
    # Summed over processes, gradients of all layers live until all are there.
    accumulates = recipe.examples_per_step > 1 or workers.num > 1
    plan = plan_memory(
        ModelShape.of(lora.model.model.config),
        recipe.token_budget,
        limit_bytes,
        completion_tokens=recipe.token_budget,
        trained=Trained(lora.recipe.rank, recipe.optimizer, quantization, accumulates),
    )
    lora.keep(plan.saved)
