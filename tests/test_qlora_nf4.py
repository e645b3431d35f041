"""Tests of weights in NF4: bitsandbytes' own numbers, through every dtype, shape and move."""

import math

import bitsandbytes.functional as bnb
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mmar_jobs.qlora.nf4 import BLOCK, Nf4Linear, Nf4Weight

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BUFFERS = ("packed", "absmax", "absmax_scale", "absmax_code", "offset")
# The 16 levels of NF4 as in QLoRA's appendix E (Dettmers et al. 2023, arXiv 2305.14314).
LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def drawn(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """A weight as models have them."""
    generator = torch.Generator().manual_seed(seed)
    return (0.02 * torch.randn(shape, generator=generator)).to(dtype)


def by_hand(weight: Nf4Weight) -> Tensor:
    """The weight from its buffers by the formula of the docstring, fp32."""
    codes = torch.stack((weight.packed >> 4, weight.packed & 15), dim=1).flatten()
    blocks = torch.arange(weight.absmax.numel())
    scale = weight.absmax_code[weight.absmax.long()] * weight.absmax_scale[blocks // 256]
    flat = torch.tensor(LEVELS)[codes.long()][: weight.numel()]
    return (flat * (scale + weight.offset).repeat_interleave(BLOCK)[: flat.numel()]).view(
        weight.shape
    )


@given(
    shape=st.one_of(
        st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 9).map(lambda n: 8 * n)),
        st.tuples(st.integers(2, 70), st.integers(2, 130)),
    ),
    dtype=st.sampled_from(DTYPES),
)
def test_dequantised_is_what_bitsandbytes_gives(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Bit for bit, for 2-D and 3-D weights, also where blocks cross rows or the last is short."""
    weight = drawn(shape, dtype)
    packed, state = bnb.quantize_4bit(
        weight, blocksize=64, quant_type="nf4", compress_statistics=True
    )
    ours = Nf4Weight.quantize(weight)
    assert torch.equal(bnb.dequantize_4bit(packed, state), ours.dequantize())
    assert (weight.shape, dtype) == (ours.dequantize().shape, ours.dequantize().dtype)
    assert (ours.shape, ours.dtype, weight.numel()) == (weight.shape, dtype, ours.numel())


def test_buffers_are_laid_out_as_said() -> None:
    """Codes, scales, blocks: the formula gives the same numbers; kernels are written from it."""
    weight = Nf4Weight.quantize(drawn((5, 96, 128), torch.float32))
    assert (weight.dequantize() - by_hand(weight)).abs().max() < 1e-8
    num_blocks = weight.numel() // 64
    sizes = {name: (b.dtype, tuple(b.shape)) for name, b in weight.named_buffers()}
    assert sizes == {
        "packed": (torch.uint8, (weight.numel() // 2,)),
        "absmax": (torch.uint8, (num_blocks,)),
        "absmax_scale": (torch.float32, (math.ceil(num_blocks / 256),)),
        "absmax_code": (torch.float32, (256,)),
        "offset": (torch.float32, ()),
    }
    assert weight.num_bytes == sum(
        math.prod(shape) * dtype.itemsize for dtype, shape in sizes.values()
    )


def test_error_is_that_of_four_bits() -> None:
    """Of a normal weight less than a tenth is lost (root mean square), and nothing is moved far."""
    weight = drawn((4, 128, 256), torch.float32)
    rest = Nf4Weight.quantize(weight).dequantize() - weight
    assert 0.05 < rest.square().mean().sqrt() / weight.std() < 0.1
    assert rest.abs().max() < 0.2 * weight.abs().max()


def test_dequantised_in_another_dtype() -> None:
    """The same numbers, rounded once."""
    weight = Nf4Weight.quantize(drawn((3, 64, 64), torch.float32))
    for dtype in DTYPES:
        assert torch.equal(weight.dequantize().to(dtype), weight.dequantize(dtype))


def test_zeros_and_outliers_survive() -> None:
    """A block of zeros stays zero; one huge number keeps to its block."""
    weight = drawn((2, 64, 64), torch.float32)
    weight[0] = 0
    weight[1, 0, 0] = 1000
    back = Nf4Weight.quantize(weight).dequantize()
    assert back.isfinite().all()
    assert not back[0].any()
    assert back[1, 0, 0] == pytest.approx(1000, rel=0.01)


def test_a_model_with_nf4_can_be_moved_and_cast() -> None:
    """model.to(bfloat16) rounds no scale, a deep copy and a state dict hold all buffers."""
    holder = nn.ModuleDict({"w": Nf4Weight.quantize(drawn((64, 128), torch.float32))})
    before = holder["w"].dequantize()
    holder.to(torch.bfloat16)
    assert torch.equal(before, holder["w"].dequantize())
    assert {f"w.{name}" for name in BUFFERS} == set(holder.state_dict())
    assert not list(holder.parameters())
    holder.to("meta")
    assert holder["w"].device == torch.device("meta")


def test_empty_has_the_sizes_of_a_quantised_one() -> None:
    """What the audit counts is what loading makes."""
    for shape in ((8, 128, 64), (5, 33), (1, 3, 8)):
        real = Nf4Weight.quantize(drawn(shape, torch.bfloat16))
        empty = Nf4Weight.empty(torch.Size(shape), torch.bfloat16)
        sizes = [
            {name: (b.dtype, b.shape) for name, b in weight.named_buffers()}
            for weight in (real, empty)
        ]
        assert sizes[0] == sizes[1]
        assert (real.num_bytes, real.shape) == (empty.num_bytes, empty.shape)
        assert empty.device.type == "meta"


def test_random_is_a_plausible_weight() -> None:
    """Standard deviation 0.02, mean 0, the buffers of a quantised one, drawn from the generator."""
    first, again, other = (
        Nf4Weight.random(
            (4, 256, 128),
            device=torch.device("cpu"),
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in (0, 0, 1)
    )
    weight = first.dequantize()
    assert (torch.bfloat16, (4, 256, 128)) == (weight.dtype, tuple(weight.shape))
    assert weight.float().std() == pytest.approx(0.02, rel=0.02)
    assert abs(weight.float().mean()) < 1e-3
    assert torch.equal(weight, again.dequantize())
    assert not torch.equal(weight, other.dequantize())
    real = Nf4Weight.quantize(drawn((4, 256, 128), torch.bfloat16))
    for name in BUFFERS:
        ours, like = getattr(first, name), getattr(real, name)
        assert (like.shape, like.dtype) == (ours.shape, ours.dtype)
    assert torch.equal(real.absmax_code, first.absmax_code)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_the_dequantised_layer(bias: bool) -> None:
    """The same as a plain layer with the decoded weight; gradients reach the input."""
    plain = nn.Linear(128, 96, bias=bias)
    linear = Nf4Linear.quantize(plain)
    assert (128, 96) == (linear.in_features, linear.out_features)
    assert linear.bias is plain.bias
    x = torch.randn(7, 128, requires_grad=True)
    weight = linear.weight.dequantize()
    assert torch.equal(nn.functional.linear(x, weight, plain.bias), linear(x))
    linear(x).sum().backward()
    assert x.grad is not None
    assert torch.allclose(weight.sum(0).expand(7, -1), x.grad, atol=1e-6)
