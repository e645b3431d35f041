"""The optimizer over all factors, and its state as named tensors.

Not here: gradients and their clipping (step.py), the learning rate's course (step.py), files.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmar_jobs.errors import DataError, SettingsError
from mmar_jobs.qlora.recipes import TrainRecipe


def build_optimizer(
    factors: Iterable[nn.Parameter], recipe: TrainRecipe, *, is_paged: bool = False
) -> torch.optim.Optimizer:
    """AdamW over the fp32 factors, with fp32 or with 8-bit moments.

    Paged 8-bit moments live in host memory where a GPU's does not hold them, with equal results.
    "adamw8bit" without bitsandbytes is a SettingsError.
    """
    trained = list(factors)
    options: dict[str, Any] = {
        "lr": recipe.learning_rate,
        "betas": recipe.betas,
        "weight_decay": recipe.weight_decay,
    }
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(trained, fused=True, **options)
    try:
        from mmar_jobs.qlora.adamw8bit import FusedAdamW8bit  # noqa: PLC0415 - takes seconds
    except ImportError as error:
        raise SettingsError(
            "optimizer adamw8bit needs bitsandbytes, which is not installed: choose adamw"
        ) from error
    return FusedAdamW8bit(trained, is_paged=is_paged, **options)  # type: ignore[no-untyped-call]


def optimizer_state(
    optimizer: torch.optim.Optimizer, factors: Mapping[str, nn.Parameter]
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Tensors by "<factor>.<key>" where they lie, and plain numbers by the same names."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, int] = {}
    for name, factor in factors.items():
        for key, value in optimizer.state.get(factor, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{name}.{key}"] = value
            else:
                numbers[f"{name}.{key}"] = value
    return tensors, numbers


@torch.no_grad()
def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    factors: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
    numbers: Mapping[str, int],
) -> None:
    """The inverse of optimizer_state, bit for bit; DataError when the state is of other factors."""
    _create_state(optimizer)
    used = set()
    for name, factor in factors.items():
        state = optimizer.state[factor]
        for key, value in state.items():
            saved = f"{name}.{key}"
            used.add(saved)
            try:
                if isinstance(value, Tensor):
                    value.copy_(tensors[saved])
                else:
                    state[key] = numbers[saved]
            except (KeyError, RuntimeError) as error:
                raise DataError(f"the checkpoint does not fit the optimizer: {error}") from error
    if unknown := sorted({*tensors, *numbers} - used):
        raise DataError(f"the checkpoint holds {unknown[0]}, which the optimizer does not know")


def _create_state(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer make its state, as the first step would, without taking one."""
    for group_index, group in enumerate(optimizer.param_groups):
        for index, factor in enumerate(group["params"]):
            if hasattr(optimizer, "init_state"):  # bitsandbytes, which knows where pages lie
                optimizer.init_state(group, factor, group_index, index)
                continue
            optimizer.state[factor] = {
                "step": torch.zeros((), dtype=torch.float32, device=factor.device),
                "exp_avg": torch.zeros_like(factor),
                "exp_avg_sq": torch.zeros_like(factor),
            }
