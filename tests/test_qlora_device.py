"""Choosing a device and fitting training into a GPU's memory, without a GPU."""

from bisect import bisect_left
from dataclasses import replace
from typing import Any

import pytest
import torch

from mmar_jobs.errors import SettingsError
from mmar_jobs.qlora.device import choose_device, memory_limit, plan_gpu
from mmar_jobs.qlora.distributed import ALONE
from mmar_jobs.qlora.lora import attach_lora, fits_kernels, fuse
from mmar_jobs.qlora.memory import LEVELS, ModelShape, Trained, plan_memory
from mmar_jobs.qlora.recipes import LoraRecipe, Optimizer, TrainRecipe
from tests import qlora_cases as cases

GB = 10**9
CPU = torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    """Asked for, it is an error that says what to do; left open, the CPU computes without limit."""
    with pytest.raises(SettingsError, match=r"finds no GPU here; use --hardware\.device cpu"):
        choose_device("cuda", 0)
    assert CPU == choose_device("auto", 0) == choose_device("cpu", 1)
    assert memory_limit(80, CPU) is None


@pytest.mark.parametrize(
    ("key", "value"), [("hidden_act", "gelu"), ("attention_bias", True), ("head_dim", 96)]
)
def test_what_the_kernels_do_not_compute_runs_the_reference(key: str, value: object) -> None:
    """Another activation, biases, odd heads: kernels would compute another model without a word."""
    config = cases.thinker().model.config
    assert fits_kernels(config)
    setattr(config, key, value)
    assert not fits_kernels(config)


def test_on_a_cpu_nothing_is_fused() -> None:
    """Kernels need a GPU; where they are asked for, taking LoRA off gives the layers back."""
    model = cases.thinker()
    layers = list(model.model.layers)
    lora = attach_lora(model, LoraRecipe(rank=3, alpha=6.0), seed=0)
    assert not lora.is_fused
    fused = fuse(lora)
    assert fused.is_fused
    assert not set(layers) & set(model.model.layers)
    fused.detach()
    assert layers == list(model.model.layers)


def test_moments_are_paged_only_where_nothing_else_fits() -> None:
    """Between the smallest budgets with and without them; fp32 moments never are."""
    lora = fuse(cases.adapted())
    recipe = TrainRecipe(learning_rate=1e-3, token_budget=64)

    def outcome(limit_bytes: int, optimizer: Optimizer) -> int:
        """0 refused, 1 paged, 2 all on the GPU."""
        chosen = replace(recipe, optimizer=optimizer)
        known: Any = {"limit_bytes": limit_bytes, "quantization": "none", "workers": ALONE}
        try:
            return 1 if plan_gpu(lora, chosen, **known) else 2
        except SettingsError:
            return 0

    def smallest(wanted: int, optimizer: Optimizer = "adamw8bit") -> int:
        return bisect_left(range(2 * GB), wanted, key=lambda limit: outcome(limit, optimizer))

    num_factors = sum(factor.numel() for factor in lora.factors().values())
    assert smallest(2) - smallest(1) == round(num_factors * (2 + 8 / 256))
    assert smallest(2, "adamw") == smallest(1, "adamw") > smallest(2)
    tower_bytes = sum(p.numel() * p.element_size() for p in lora.model.audio_tower.parameters())
    how = Trained(3, "adamw8bit", "none", pages_optimizer=True, tower_bytes=tower_bytes)
    shape = ModelShape.of(lora.model.model.config)
    planned = plan_memory(shape, 256, smallest(1), completion_tokens=64, trained=how)
    assert (smallest(1), {LEVELS[0]}) == (planned.peak_bytes, set(planned.saved))
    assert tower_bytes == planned.parts["audio tower"] > 0
