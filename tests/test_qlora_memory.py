"""Tests of the memory model: what it keeps, what it refuses, and that it counts right."""

import re
from bisect import bisect_left
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmar_jobs.bench.shape import SHAPES, build_thinker
from mmar_jobs.errors import SettingsError
from mmar_jobs.qlora.device import plan_gpu
from mmar_jobs.qlora.distributed import ALONE
from mmar_jobs.qlora.lora import attach_lora, fuse
from mmar_jobs.qlora.memory import (
    LEVELS,
    MemoryPlan,
    ModelShape,
    Quantization,
    Trained,
    plan_memory,
)
from mmar_jobs.qlora.recipes import LoraRecipe, Optimizer, TrainRecipe
from tests import qlora_cases as cases

REAL = SHAPES["30b"]
GB = 10**9
FITTED = Trained(rank=64, optimizer="adamw8bit", quantization="nf4", accumulates=False)
shapes = st.builds(
    ModelShape,
    num_layers=st.integers(1, 12),
    hidden=st.sampled_from([128, 1024, 2048]),
    num_experts=st.sampled_from([8, 64, 128]),
    experts_per_token=st.integers(1, 8),
    expert_width=st.sampled_from([64, 768]),
    num_heads=st.sampled_from([4, 32]),
    num_kv_heads=st.sampled_from([2, 4]),
    head_dim=st.sampled_from([32, 128]),
    vocabulary=st.sampled_from([1024, 152_064]),
)
trained = st.builds(
    Trained,
    rank=st.integers(1, 128),
    optimizer=st.sampled_from(["adamw", "adamw8bit"]),
    quantization=st.sampled_from(["nf4", "none"]),
    accumulates=st.booleans(),
)
tokens = st.integers(1, 40_000)


def plan(shape: ModelShape, num: int, budget_bytes: int, how: Trained) -> MemoryPlan:
    """Plan a row of which two thirds are completion."""
    return plan_memory(shape, num, budget_bytes, completion_tokens=num * 2 // 3, trained=how)


def smallest_bytes(shape: ModelShape, num: int, how: Trained) -> int:
    """The budget that the refusal names, in bytes."""
    with pytest.raises(SettingsError, match="needs") as refused:
        plan(shape, num, 0, how)
    found = re.search(r"needs ([\d.]+) GB", str(refused.value))
    assert found
    return round(float(found[1]) * GB)


def levels(planned: MemoryPlan) -> list[int]:
    """What each layer keeps, as a number."""
    return [LEVELS.index(saved) for saved in planned.saved]


@given(shapes, tokens, trained, st.integers(0, 10**11), st.integers(0, 10**11))
def test_more_memory_never_keeps_less(
    shape: ModelShape, num: int, how: Trained, more: int, still_more: int
) -> None:
    """No layer computes again with a larger budget what it kept with a smaller one."""
    smallest = smallest_bytes(shape, num, how)
    less = plan(shape, num, smallest + more, how)
    enough = plan(shape, num, smallest + more + still_more, how)
    assert all(a <= b for a, b in zip(levels(less), levels(enough), strict=True))


@given(shapes, tokens, trained, st.integers(0, 10**11))
def test_a_plan_stays_within_its_budget(
    shape: ModelShape, num: int, how: Trained, more: int
) -> None:
    """The parts add up to a peak of at most the budget, and none is negative."""
    budget_bytes = smallest_bytes(shape, num, how) + more
    planned = plan(shape, num, budget_bytes, how)
    assert planned.peak_bytes <= budget_bytes
    assert min(planned.parts.values()) >= 0


@given(shapes, tokens, trained)
def test_a_refusal_names_the_smallest_budget(shape: ModelShape, num: int, how: Trained) -> None:
    """The budget that it names works; 0.1 GB less, its own precision, does not."""
    smallest = smallest_bytes(shape, num, how)
    assert plan(shape, num, smallest, how).peak_bytes <= smallest
    with pytest.raises(SettingsError):
        plan(shape, num, smallest - GB // 10, how)


@given(shapes, tokens, trained, st.integers(0, 10**11))
def test_upper_layers_keep_first(shape: ModelShape, num: int, how: Trained, more: int) -> None:
    """Layers differ by one level at most, and an upper one never keeps less than a lower one."""
    found = levels(plan(shape, num, smallest_bytes(shape, num, how) + more, how))
    assert found == sorted(found)
    assert found[-1] - found[0] <= 1


@given(shapes, tokens, tokens, trained)
def test_longer_rows_need_more(shape: ModelShape, num: int, more: int, how: Trained) -> None:
    """The smallest budget grows with the row."""
    assert smallest_bytes(shape, num, how) <= smallest_bytes(shape, num + more, how)


def test_gradients_of_several_rows_need_more() -> None:
    """With one row a layer's gradients take the place of activations that are gone."""
    alone = plan(REAL, 8192, 80 * GB, FITTED)
    several = plan(REAL, 8192, 80 * GB, Trained(64, "adamw8bit", "nf4", accumulates=True))
    assert sum(levels(several)) < sum(levels(alone))


def test_the_real_model_keeps_everything_at_8192_tokens() -> None:
    """Rows of 8,192 tokens in 80 GB compute nothing again; rows of 32,768 still fit."""
    assert set(levels(plan(REAL, 8192, 80 * GB, FITTED))) == {len(LEVELS) - 1}
    assert plan(REAL, 32_768, 80 * GB, FITTED).peak_bytes <= 80 * GB


def test_a_refusal_says_what_to_lower() -> None:
    """It names the settings that would help, and no setting that is low already."""
    with pytest.raises(SettingsError, match=r"adamw8bit.*nf4"):
        plan(REAL, 8192, GB, Trained(64, "adamw", "none"))
    with pytest.raises(SettingsError) as refused:
        plan(REAL, 8192, GB, FITTED)
    assert "adamw8bit" not in str(refused.value)
    assert "nf4" not in str(refused.value)


def test_factors_of_the_real_model() -> None:
    """Rank 64 on attention and separate gate, up and down of every expert: 3.38 B numbers."""
    assert round(REAL.num_layers * REAL.factors(64) / 1e9, 2) == 3.38


def tiny(quantization: Quantization) -> Any:
    """The tiny shape in bf16 on the CPU."""
    cpu = torch.device("cpu")
    return build_thinker(SHAPES["tiny"], quantization, dtype=torch.bfloat16, device=cpu, seed=0)


def test_parts_are_those_of_a_model() -> None:
    """Bytes of the base and of the factors are those of the tensors that really exist."""
    model = tiny("none")
    base_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    lora = attach_lora(model, LoraRecipe(rank=3, alpha=6.0), seed=0)
    factor_bytes = sum(p.numel() * p.element_size() for p in lora.factors().values())
    parts = plan(SHAPES["tiny"], 256, 80 * GB, Trained(3, "adamw", "none")).parts
    assert parts["base"] == base_bytes
    assert parts["factors"] == factor_bytes


def test_a_quantised_base_is_as_large_as_planned() -> None:
    """Codes and scales of NF4, without each weight's table of 257 fp32 numbers."""
    model = tiny("nf4")
    weights = [m for m in model.modules() if type(m).__name__ == "Nf4Weight"]
    plain = sum(p.numel() * p.element_size() for p in model.parameters())
    coded = sum(weight.num_bytes - 4 * 257 for weight in weights)
    planned = plan(SHAPES["tiny"], 256, 80 * GB, Trained(3, "adamw", "nf4")).parts["base"]
    assert planned == pytest.approx(plain + coded, rel=2e-3)


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
    planned = plan_memory(shape, 64, smallest(1), completion_tokens=64, trained=how)
    assert (smallest(1), {LEVELS[0]}) == (planned.peak_bytes, set(planned.saved))
    assert tower_bytes == planned.parts["audio tower"] > 0
