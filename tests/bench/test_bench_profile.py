"""Tests of where a step's time goes: classes by name, and shares that add up."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmar_jobs.bench.flops import peak_bf16_flops, step_flops
from mmar_jobs.bench.profile import Busy, classify, profile_step, share_out
from mmar_jobs.bench.shape import SHAPES


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_tst_256x128_64x4_1x2_h_bz_coopA_TNT", "gemm"),
        (
            "void cutlass::device_kernel<GemmUniversal<cutlass::gemm::GroupProblemShape<...",
            "grouped_gemm",
        ),
        ("_matmul_kernel", "grouped_gemm"),
        ("_outer_kernel", "lora"),
        ("_widen_kernel", "dequantize"),
        (
            "ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
            "communication",
        ),
        ("void kDequantizeBlockwise<__nv_bfloat16, 512, 64, 8, 2>", "dequantize"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128>>", "attention"),
        ("void kOptimizerStatic8bit2StateBlockwise<float, 1, 256, 1>", "optimizer"),
        ("void at::native::multi_tensor_apply_kernel<...LpNormFunctor>", "optimizer"),
        ("void at::native::indexSelectLargeIndex<...>", "index"),
        ("void at::native::radixSortKVInPlace<...>", "index"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("void at::native::vectorized_elementwise_kernel<4, AddFunctor>", "elementwise"),
        ("void (anonymous namespace)::softMaxForward<4, float>", "loss"),
        ("aten::mm", "gemm"),
    ],
)
def test_kernels_are_told_apart(name: str, kind: str) -> None:
    """Names as CUDA's and torch's libraries and our own kernels give them."""
    assert classify(name) == kind


@given(
    st.lists(st.tuples(st.sampled_from(["aten::mm", "aten::add"]), st.floats(1, 50))),
    st.floats(1e-6, 1e-2),
)
def test_shares_add_up(parts: list[tuple[str, float]], step_s: float) -> None:
    """Classes and gaps are the whole step, also where kernels alone took longer than it."""
    shares = share_out([Busy(name, own_us) for name, own_us in parts], step_s)
    busy_s = sum(own_us for _, own_us in parts) / 1e6
    assert sum(shares.shares.values()) == pytest.approx(1)
    assert min(shares.shares.values()) >= 0
    assert shares.shares["gaps"] == pytest.approx(max(0, 1 - busy_s / step_s), abs=1e-6)


def test_a_profile_finds_the_work() -> None:
    """A step of matrix products is shown as one."""
    x = torch.randn(300, 300)

    def multiply() -> None:
        for _ in range(20):
            torch.mm(x, x)

    shares = profile_step(multiply, torch.device("cpu"), step_s=1e-6)
    assert max(shares.shares, key=shares.shares.__getitem__) == "gemm"
    assert shares.top["gemm"][0][0] == "aten::mm"
    assert shares.top["gemm"][0][2] == 20


def test_flops_of_the_real_model() -> None:
    """12.4 GFLOP a token without head and attention, by hand: 4 · 2.73 B + 6 · 0.261 B."""
    shape = SHAPES["30b"]
    short = step_flops(shape, 64, [1] * 1000, 0) / 1000
    assert short == pytest.approx(4 * 2.730e9 + 6 * 0.2612e9, rel=2e-3)
    with_head = step_flops(shape, 64, [1] * 1000, 1000) / 1000
    assert with_head - short == pytest.approx(4 * 152_064 * 2048)
    # Attention: sequences of 8,192 tokens against single tokens.
    long = step_flops(shape, 64, [8192], 0) / 8192
    assert long - short == pytest.approx(6 * 8191 * 32 * 128 * 48)


def test_peaks_by_device_name() -> None:
    """Devices of the table by torch's names; an unknown one has no peak rather than a wrong one."""
    assert peak_bf16_flops("NVIDIA H200") == 989e12
    assert peak_bf16_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_bf16_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_bf16_flops("AMD EPYC, 1 threads") is None
