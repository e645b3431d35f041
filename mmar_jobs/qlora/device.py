"""Where training computes, and how it fills a GPU's memory.

Not here: what fills it (memory.py).
"""

import dataclasses
from typing import Final, Literal

import torch

from mmar_jobs.errors import SettingsError
from mmar_jobs.qlora.distributed import Workers
from mmar_jobs.qlora.lora import LoraModel
from mmar_jobs.qlora.memory import (
    MemoryPlan,
    ModelShape,
    Quantization,
    Trained,
    plan_memory,
)
from mmar_jobs.qlora.recipes import TrainRecipe

_GB: Final = 10**9
_NUM_THREADS: Final = 4
_RESERVE_BYTES: Final = 2 * _GB  # what other processes and the driver hold on a GPU


def choose_device(wanted: Literal["auto", "cpu", "cuda"], local_rank: int) -> torch.device:
    """This process's device; SettingsError for a GPU that is not there."""
    has_gpu = torch.cuda.is_available()
    if wanted == "cpu" or (wanted == "auto" and not has_gpu):
        return torch.device("cpu")
    if not has_gpu:
        raise SettingsError(
            "--hardware.device cuda: torch finds no GPU here; use --hardware.device cpu"
        )
    num_gpus = torch.cuda.device_count()
    if local_rank >= num_gpus:
        raise SettingsError(
            f"process {local_rank} needs a GPU of its own, this machine shows {num_gpus}: lower "
            "--hardware.processes (or torchrun's), or choose --hardware.device cpu"
        )
    return take_gpu(local_rank)


def take_gpu(index: int) -> torch.device:
    """Let this process compute on that GPU, and leave the cores to the thread that queues kernels.

    A thread a core has little to do beside a GPU, and waits by spinning: on 32 cores the trainer
    made 14,450 tokens/s with 32 threads and 16,240 with four.
    """
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    torch.set_num_threads(min(_NUM_THREADS, torch.get_num_threads()))
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


def plan_gpu(
    lora: LoraModel,
    recipe: TrainRecipe,
    *,
    limit_bytes: int,
    quantization: Quantization,
    workers: Workers,
) -> bool:
    """Let every fused layer keep as many activations as fit; True if the optimizer must be paged.

    Its 8-bit moments are paged where the smallest training does not fit otherwise. Raises
    SettingsError where it does not fit at all.
    """
    tower = lora.model.audio_tower
    trained = Trained(
        lora.recipe.rank,
        recipe.optimizer,
        quantization,
        # How many rows a step really has is known when its examples are encoded, long after this.
        accumulates=recipe.examples_per_step > workers.num,
        tower_bytes=sum(weight.numel() * weight.element_size() for weight in tower.parameters()),
    )
    shape, tokens = ModelShape.of(lora.model.model.config), recipe.token_budget

    def plan(how: Trained) -> MemoryPlan:
        return plan_memory(shape, tokens, limit_bytes, completion_tokens=tokens, trained=how)

    try:
        lora.keep(plan(trained))
    except SettingsError:
        if recipe.optimizer != "adamw8bit":
            raise
        paged = dataclasses.replace(trained, pages_optimizer=True)
        lora.keep(plan(paged))
        return True
    return False
