"""What the kernels ask of a GPU: each compiles for A100 and H100 and fits, without one at hand.

Not here: what they compute (test_kernels.py).
"""

import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import driver  # noqa: E402

from mmar_jobs.qlora.dropout import NOTHING_DROPPED, DropKey  # noqa: E402
from mmar_jobs.qlora.kernels import (  # noqa: E402
    adamw8bit,
    combine,
    cross_entropy,
    grouped,
    lora,
    norm,
    rope,
    swiglu,
    widen,
)
from mmar_jobs.qlora.nf4 import Nf4Weight  # noqa: E402

MODULES: tuple[ModuleType, ...] = (
    *(adamw8bit, combine, cross_entropy, grouped, lora, norm, rope, swiglu, widen),
)
# Bytes of shared memory that a block may use at most: CUDA C++ Programming Guide, table of compute
# capabilities, 163 and 227 KB.
SHARED_BYTES = {(8, 0): 163 << 10, (9, 0): 227 << 10}
# The 30B model's, but for fewer experts: the code of a kernel does not depend on their number.
TOKENS, EXPERTS_PER_TOKEN, EXPERTS, HIDDEN, WIDTH, RANK, HEAD = 16, 8, 4, 2048, 768, 64, 128
ROUTED = TOKENS * EXPERTS_PER_TOKEN


class Absent:
    """A GPU that is not there: kernels are compiled for it, measured, and not run."""

    def __init__(self, capability: tuple[int, int]) -> None:
        self.capability = capability
        self.compiled: set[tuple[str, str]] = set()
        self.utils = self

    def get_current_target(self) -> GPUTarget:
        """What to compile for."""
        major, minor = self.capability
        return GPUTarget("cuda", 10 * major + minor, 32)

    def get_current_device(self) -> int:
        """A number that no real device has: Triton keeps compiled kernels by it."""
        return -10 * self.capability[0] - self.capability[1]

    def get_current_stream(self, _device: int) -> int:
        """None."""
        return 0

    def get_device_properties(self, _device: int) -> dict[str, int]:
        """What a kernel must fit into: Triton raises OutOfResources for one that does not."""
        return {"max_shared_mem": SHARED_BYTES[self.capability]}

    def load_binary(self, *_: Any) -> tuple[int, int, int, int, int]:
        """Module, function, registers, spills, threads."""
        return 1, 1, 0, 0, 1024

    def launcher_cls(self, source: Any, _metadata: Any) -> Any:
        """What Triton calls to launch a kernel that was compiled from `source`."""
        self.compiled.add((source.fn.__module__, source.fn.__name__))
        return lambda *_: None


@pytest.fixture(params=SHARED_BYTES)
def gpu(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Absent]:
    """The driver of an absent GPU in place of CUDA's, and an empty cache."""
    absent, before = Absent(request.param), driver._active
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path)
        driver.set_active(absent)
        try:
            yield absent
        finally:
            driver.set_active(before)


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Numbers that nobody reads."""
    return torch.empty(shape, dtype=dtype)


def compile_experts(drop: DropKey, tile: Any) -> None:
    """What a layer's experts call, forward and backward."""
    fp32 = torch.float32
    groups = grouped.group_rows(torch.zeros(EXPERTS + 1, dtype=torch.int32), ROUTED)
    token = torch.zeros(ROUTED, dtype=torch.int32)
    wide, narrow = empty(ROUTED, HIDDEN + 2 * RANK), empty(ROUTED, WIDTH + RANK)
    factor = empty(EXPERTS, 2 * RANK, HIDDEN, dtype=fp32)
    known = {"num_rows": ROUTED, "scale": 2.0, "drop": drop}
    lora.append_inner(empty(TOKENS, HIDDEN), factor, groups, token_S=token, **known)
    down = empty(EXPERTS, RANK, WIDTH, dtype=fp32)
    lora.append_inner(empty(ROUTED, WIDTH), down, groups, **known)
    weight = empty(EXPERTS, 2 * WIDTH, HIDDEN + 2 * RANK)
    grouped.triton_grouped_matmul(wide, weight.transpose(1, 2), groups, tile=tile)
    grouped.triton_grouped_matmul(empty(ROUTED, 2 * WIDTH), weight, groups, tile=tile)
    outer = {"scale": 2.0, "drop": drop}
    grouped.grouped_outer(
        wide[:, HIDDEN:], empty(TOKENS, HIDDEN), groups.offsets, token_S=token, **outer
    )
    grouped.grouped_outer(narrow[:, WIDTH:], narrow[:, :WIDTH], groups.offsets, **outer)
    grouped.grouped_outer(empty(ROUTED, HIDDEN), narrow[:, WIDTH:], groups.offsets)
    place = torch.zeros(TOKENS, EXPERTS_PER_TOKEN, dtype=torch.int32)
    combine.combine(empty(ROUTED, HIDDEN), place)
    combine.combine(wide[:, :HIDDEN], place, extra_SH=empty(ROUTED, HIDDEN), **outer)
    gate_up, routing_weight = empty(ROUTED, 2 * WIDTH), empty(ROUTED)
    swiglu.swiglu(gate_up, routing_weight)
    extra = empty(ROUTED, WIDTH)
    swiglu.swiglu_backward(gate_up, routing_weight, narrow[:, :WIDTH], extra_SI=extra, **outer)
    lora.dropped(wide[:, :HIDDEN], scale=2.0, drop=drop)


def compile_rest() -> None:
    """Norms, rotation, loss, NF4 and the optimizer."""
    hidden, one = empty(TOKENS, HIDDEN), empty(HIDDEN)
    total, out, rms = norm.add_rms_norm(hidden, hidden, one, 1e-6)
    norm.rms_norm_backward(total, one, rms, out, out)
    q, weight, cos = empty(TOKENS, 32 * HEAD), empty(HEAD), empty(TOKENS, HEAD)
    rotated = rope.norm_and_rotate(q, weight, cos, cos, eps=1e-6)
    rope.norm_and_rotate_backward(q, weight, cos, cos, rotated, eps=1e-6, out_TN=q)
    target, coefficient = torch.zeros(8, dtype=torch.int64), torch.ones(8)
    cross_entropy.cross_entropy_(empty(8, 152_064), target, coefficient)
    quantised, b = Nf4Weight.quantize(torch.ones(2, 64, HIDDEN)), empty(2, 32, RANK).float()
    for weight in (quantised, empty(2, 64, HIDDEN)):
        widen.widen(weight, (b, b), empty(2, 64, HIDDEN + 2 * RANK), first_column=0)
    codes = {name: empty(4096, dtype=torch.uint8) for name in ("state1", "state2")}
    scales = {name: torch.ones(16) for name in ("absmax1", "absmax2")}
    maps = {name: torch.ones(256) for name in ("qmap1", "qmap2")}
    rates = {"learning_rate": 1e-3, "betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": 0.0}
    adamw8bit.adamw8bit_(torch.ones(4096), torch.ones(4096), codes | scales | maps, step=1, **rates)


@pytest.mark.slow
def test_every_kernel_compiles_and_fits(gpu: Absent) -> None:
    """With the 30B model's shapes, in 16 bits, with and without dropout; none is left out."""
    tile = grouped.tile_of(gpu.capability, torch.bfloat16)
    for drop in (DropKey(torch.zeros(2, dtype=torch.int32), 3277), NOTHING_DROPPED):
        compile_experts(drop, tile)
    compile_rest()
    kernels = {
        (module.__name__, name)
        for module in MODULES
        for name in vars(module)
        if name.endswith("_kernel")
    }
    assert kernels == gpu.compiled


@given(
    rank=st.integers(1, 40),
    columns=st.integers(1, 40).map(lambda n: 8 * n),
    transposed=st.booleans(),
    sliced=st.booleans(),
)
def test_aligned_is_what_grouped_mm_takes(
    rank: int, columns: int, transposed: bool, sliced: bool
) -> None:
    """By torch's own check of strides: where it refuses, our kernel computes."""
    rows, weight = (
        torch.empty(10, columns + rank, dtype=torch.bfloat16, device="meta"),
        torch.empty(2, 32, columns + rank, dtype=torch.bfloat16, device="meta"),
    )
    if sliced:
        rows, weight = rows[:, :columns], weight[:, :, :columns]
    weight = weight.transpose(1, 2)
    if not transposed:
        weight = torch.empty(weight.shape, dtype=torch.bfloat16, device="meta")
    offsets = torch.empty(2, dtype=torch.int32, device="meta")
    if grouped.is_aligned(rows) and grouped.is_aligned(weight):
        assert (10, 32) == functional.grouped_mm(rows, weight, offs=offsets).shape
    else:
        with pytest.raises(RuntimeError, match="multiple of 16 bytes"):
            functional.grouped_mm(rows, weight, offs=offsets)
