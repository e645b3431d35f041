"""Every kernel against plain torch: on a GPU, or in Triton's interpreter on CPU.

Not here: speed (mmar-jobs bench train).
"""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

triton = pytest.importorskip("triton")
ON_GPU = torch.cuda.is_available()
if not ON_GPU and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

from mmar_jobs.qlora.dropout import NOTHING_DROPPED, Dropout  # noqa: E402
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

DEVICE = torch.device("cuda" if ON_GPU else "cpu")
DTYPE = torch.float32
# tf32 on a GPU: 10 bits of mantissa, sums over up to 200 rows of standard normals.
TOLERANCE = {"rtol": 1e-2, "atol": 5e-2} if ON_GPU else {"rtol": 1e-4, "atol": 1e-4}
FEW = settings(max_examples=12 if ON_GPU else 5, deadline=None)

counts_of_experts = st.lists(st.integers(0, 200), min_size=1, max_size=5)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal numbers on the device."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).to(DEVICE, DTYPE)


def groups_of(counts: list[int]) -> grouped.Groups:
    """Groups of rows by their counts."""
    offsets = torch.tensor([0, *counts]).cumsum(0).to(torch.int32).to(DEVICE)
    return grouped.group_rows(offsets, sum(counts))


def experts_of(counts: list[int]) -> torch.Tensor:
    """The expert of each row."""
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(DEVICE)


@FEW
@given(counts=counts_of_experts, num_in=st.integers(1, 80), num_out=st.integers(1, 150))
def test_grouped_matmul_is_each_rows_product_with_its_experts_matrix(counts, num_in, num_out):
    """Ragged sizes, empty experts and both layouts of the weight."""
    x, weight = normal(sum(counts), num_in), normal(len(counts), num_in, num_out)
    expected = torch.einsum("si,sio->so", x, weight[experts_of(counts)])
    for layout in (weight, weight.transpose(1, 2).contiguous().transpose(1, 2)):
        actual = grouped.triton_grouped_matmul(x, layout, groups_of(counts))
        torch.testing.assert_close(actual, expected, **TOLERANCE)


@FEW
@given(
    counts=counts_of_experts,
    left=st.integers(1, 100),
    right=st.integers(1, 75).map(lambda half: 2 * half),
    dropped=st.booleans(),
    gathered=st.booleans(),
)
def test_grouped_outer_sums_over_an_experts_rows(counts, left, right, dropped, gathered):
    """With and without dropout and gathering; an expert without rows gets zeros."""
    rows = sum(counts)
    dropout = Dropout(0.3, seed=left, num_sites=8)
    dropout.active = dropped
    x = normal(rows, left)
    source = normal(7 if gathered else rows, right, seed=1)
    token = torch.randint(0, 7, (rows,), generator=torch.Generator().manual_seed(right))
    token = token.to(DEVICE, torch.int32)
    y = source[token.long()] if gathered else source
    mask = dropout.mask(y.shape, 3, device=DEVICE)
    kept = y if mask is None else y.masked_fill(mask, 0)
    expected = torch.stack(
        [
            1.5 * x[experts_of(counts) == e].T @ kept[experts_of(counts) == e]
            for e in range(len(counts))
        ]
    )
    actual = grouped.grouped_outer(
        x,
        source,
        groups_of(counts).offsets,
        scale=1.5,
        token_S=token if gathered else None,
        drop=dropout.key(3, DEVICE),
    )
    torch.testing.assert_close(actual, expected, **TOLERANCE)


@FEW
@given(
    counts=counts_of_experts,
    num_in=st.integers(1, 50).map(lambda half: 2 * half),
    inner=st.sampled_from([4, 24, 64, 128]),
    dropped=st.booleans(),
)
def test_inner_columns_and_their_gradient(counts, num_in, inner, dropped):
    """append_inner, and combine's share of its gradient, are what autograd makes of drop(x)·A^T."""
    rows = sum(counts)
    dropout = Dropout(0.3, seed=num_in, num_sites=8)
    dropout.active = dropped
    token = torch.randint(0, 9, (rows,), generator=torch.Generator().manual_seed(inner))
    token = token.to(DEVICE, torch.int32)
    x, a = normal(9, num_in), normal(len(counts), inner, num_in)
    mask = dropout.mask(torch.Size((rows, num_in)), 5, device=DEVICE)
    routed = x[token.long()].clone().requires_grad_()
    kept = routed if mask is None else routed.masked_fill(mask, 0)
    expected = torch.einsum("si,sri->sr", kept, a[experts_of(counts)]) * 0.5
    wide = torch.cat((routed, expected), dim=1)
    actual = lora.append_inner(
        x,
        a,
        groups_of(counts),
        num_rows=rows,
        scale=0.5,
        drop=dropout.key(5, DEVICE),
        token_S=token,
    )
    torch.testing.assert_close(actual, wide.detach(), **TOLERANCE)
    grad = normal(rows, num_in + inner, seed=2)
    wide.backward(grad)
    folded = combine.combine(
        grad[:, :num_in],
        None,
        extra_SH=grouped.triton_grouped_matmul(grad[:, num_in:], a, groups_of(counts)),
        scale=0.5,
        drop=dropout.key(5, DEVICE),
    )
    torch.testing.assert_close(folded, routed.grad, **TOLERANCE)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_dropped_is_the_mask_of_the_key(rate):
    """Scaled, rows of a wider matrix."""
    dropout = Dropout(rate, seed=1, num_sites=8)
    dropout.active = True
    x = normal(5, 90)[:, :70]
    mask = dropout.mask(x.shape, 2, device=DEVICE)
    expected = 0.5 * (x if mask is None else x.masked_fill(mask, 0))
    torch.testing.assert_close(lora.dropped(x, scale=0.5, drop=dropout.key(2, DEVICE)), expected)


@pytest.mark.parametrize(("num_out", "width"), [(40, 192), (50, 96)])
def test_widened_nf4_is_what_bitsandbytes_decodes_and_the_bs(num_out, width):
    """Bit for bit, also where blocks cross rows; two branches stand in columns of their own."""
    weight = Nf4Weight.quantize(normal(3, num_out, width))
    gate, up = normal(3, num_out // 2, 24), normal(3, num_out // 2, 24, seed=1)
    out = torch.full((3, num_out + 9, width + 72), 7.0, device=DEVICE)
    widen.widen(weight, (gate, up), out[:, 4:-5], first_column=24)
    inner = torch.zeros(3, num_out, 72, device=DEVICE)
    inner[:, : num_out // 2, 24:48], inner[:, num_out // 2 :, 48:] = gate, up
    expected = torch.full_like(out, 7.0)
    expected[:, 4:-5] = torch.cat((weight.dequantize(DTYPE).to(inner), inner), 2)
    assert torch.equal(expected, out)


@pytest.mark.parametrize("rank", [4, 64])
def test_widened_matrix_that_is_not_quantised(rank):
    """Copied, and its only branch beside it; zero in the columns of others; nothing around it."""
    weight, b = normal(70, 33), normal(70, rank)
    out = torch.full((1, 100, 33 + 3 * rank), 7.0, device=DEVICE)
    widen.widen(weight, (b,), out[:, :70], first_column=rank)
    inner = torch.zeros(70, 3 * rank, device=DEVICE)
    inner[:, rank : 2 * rank] = b
    expected = torch.full_like(out, 7.0)
    expected[0, :70] = torch.cat((weight.to(inner), inner), 1)
    assert torch.equal(expected, out)


@FEW
@given(rows=st.integers(1, 9), width=st.sampled_from([4, 64, 300]))
def test_swiglu_and_its_gradients(rows, width):
    """Against autograd, with dropout on LoRA's part and the gradient of the routing weight."""
    gate_up, weight = normal(rows, 2 * width).requires_grad_(), normal(rows).requires_grad_()
    gate, up = gate_up.chunk(2, 1)
    expected = torch.nn.functional.silu(gate) * up * weight[:, None]
    actual = swiglu.swiglu(gate_up.detach(), weight.detach())
    torch.testing.assert_close(actual, expected.detach(), **TOLERANCE)
    grad, extra = normal(rows, width + 5, seed=1)[:, :width], normal(rows, width, seed=2)
    dropout = Dropout(0.3, seed=rows, num_sites=8)
    dropout.active = True
    mask = dropout.mask(extra.shape, 1, device=DEVICE)
    expected.backward(grad + 0.5 * extra.masked_fill(mask, 0))
    grads = swiglu.swiglu_backward(
        gate_up.detach(),
        weight.detach(),
        grad,
        extra_SI=extra,
        scale=0.5,
        drop=dropout.key(1, DEVICE),
    )
    for found, wanted in zip(grads, (gate_up.grad, weight.grad), strict=True):
        torch.testing.assert_close(found, wanted, **TOLERANCE)


def test_combine_adds_up_each_tokens_rows():
    """Rows of a wider matrix, in any order."""
    rows = normal(24, 50)[:, :40]
    place = torch.randperm(24, generator=torch.Generator().manual_seed(0)).view(6, 4).to(DEVICE)
    actual = combine.combine(rows, place.to(torch.int32))
    torch.testing.assert_close(actual, rows[place].sum(1), **TOLERANCE)


@pytest.mark.parametrize("has_delta", [False, True])
def test_norm_and_residual_with_gradient(has_delta):
    """Against autograd through a plain RMSNorm."""
    residual, weight = normal(5, 96).requires_grad_(), normal(96, seed=3)
    delta = normal(5, 96, seed=1) if has_delta else None
    total = residual + delta if has_delta else residual * 1
    expected = total * (total.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * weight
    got_total, out, rms = norm.add_rms_norm(residual.detach(), delta, weight, 1e-6)
    torch.testing.assert_close(out, expected.detach(), **TOLERANCE)
    torch.testing.assert_close(got_total, total.detach(), **TOLERANCE)
    grad, grad_total = normal(5, 96, seed=4), normal(5, 96, seed=5)
    torch.autograd.backward((expected, total), (grad, grad_total))
    found = norm.rms_norm_backward(got_total, weight, rms, grad, grad_total)
    torch.testing.assert_close(found, residual.grad, **TOLERANCE)


@pytest.mark.parametrize("heads", [1, 3, 8, 12])
def test_norm_and_rotation_of_heads(heads):
    """Against transformers' own rotation after a plain norm, forward and backward."""
    from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import apply_rotary_pos_emb

    wide = normal(7, heads * 32 + 8)
    x, weight = wide[:, : heads * 32], normal(32, seed=1)
    angle = torch.rand(7, 16, generator=torch.Generator().manual_seed(0)).to(DEVICE) * 6
    cos, sin = torch.cat((angle, angle), 1).cos(), torch.cat((angle, angle), 1).sin()
    source = x.clone().requires_grad_()
    q = source.view(7, heads, 32)
    q = q * (q.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * weight
    expected, _ = apply_rotary_pos_emb(
        q.transpose(0, 1)[None], q.transpose(0, 1)[None], cos[None], sin[None]
    )
    expected = expected[0].transpose(0, 1)
    actual = rope.norm_and_rotate(x, weight, cos, sin, eps=1e-6)
    torch.testing.assert_close(actual, expected.detach(), **TOLERANCE)
    grad = normal(7, heads, 32, seed=2)
    expected.backward(grad)
    found = torch.zeros_like(wide)
    rope.norm_and_rotate_backward(
        x, weight, cos, sin, grad, eps=1e-6, out_TN=found[:, : heads * 32]
    )
    torch.testing.assert_close(found[:, : heads * 32], source.grad, **TOLERANCE)
    assert not found[:, heads * 32 :].any()


@pytest.mark.parametrize("classes", [5, 4096, 9001])
def test_cross_entropy_and_its_gradient(classes):
    """Against autograd, with extreme logits among them."""
    logits = (normal(4, classes) * 5).requires_grad_()
    target = torch.tensor([0, 1, classes - 1, 2], device=DEVICE)
    coefficient = normal(4).abs()
    nll = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    (nll * coefficient).sum().backward()
    grad = logits.detach().clone()
    actual = cross_entropy.cross_entropy_(grad, target, coefficient)
    torch.testing.assert_close(actual, nll.detach(), **TOLERANCE)
    torch.testing.assert_close(grad, logits.grad, **TOLERANCE)


@pytest.mark.parametrize("numel", [256, 4096, 5003])
def test_8bit_adamw_is_bitsandbytes_arithmetic(numel):
    """Three steps against plain torch: fp32 moments between the codes, the nearest code found."""
    from bitsandbytes.functional import create_dynamic_map

    maps = [create_dynamic_map(signed=signed).to(DEVICE) for signed in (True, False)]
    num_blocks = -(-numel // 256)
    parameter = normal(numel)
    expected = parameter.clone().double()
    state = {
        "state1": torch.full((numel,), 127, dtype=torch.uint8, device=DEVICE),
        "state2": torch.zeros(numel, dtype=torch.uint8, device=DEVICE),
        "absmax1": torch.zeros(num_blocks, device=DEVICE),
        "absmax2": torch.zeros(num_blocks, device=DEVICE),
        "qmap1": maps[0],
        "qmap2": maps[1],
    }
    of_block = torch.arange(numel, device=DEVICE) // 256
    for step in (1, 2, 3):
        grad = normal(numel, seed=step) * torch.logspace(-6, 2, numel, device=DEVICE)
        m, v = (
            codes[state[f"state{n}"].long()] * state[f"absmax{n}"][of_block]
            for n, codes in ((1, maps[0]), (2, maps[1]))
        )
        m, v = 0.9 * m + 0.1 * grad, 0.98 * v + 0.02 * grad * grad
        c1, c2 = 1 - 0.9**step, (1 - 0.98**step) ** 0.5
        expected += -0.01 * c2 / c1 * (m / (v.sqrt() + 1e-8 * c2)).double()
        expected *= 1 - 0.01 * 0.1
        adamw8bit.adamw8bit_(
            parameter,
            grad,
            state,
            step=step,
            learning_rate=0.01,
            betas=(0.9, 0.98),
            eps=1e-8,
            weight_decay=0.1,
        )
        for n, moment, codes in ((1, m, maps[0]), (2, v, maps[1])):
            padded = torch.nn.functional.pad(moment.abs(), (0, num_blocks * 256 - numel))
            scale = padded.view(num_blocks, 256).amax(1)
            torch.testing.assert_close(state[f"absmax{n}"], scale, rtol=1e-5, atol=0)
            distance = (codes[None, :] - (moment / scale[of_block])[:, None]).abs()
            chosen = distance.gather(1, state[f"state{n}"].long()[:, None])[:, 0]
            assert bool((chosen <= distance.amin(1) + 2e-6).all())
    torch.testing.assert_close(parameter.double(), expected, rtol=1e-5, atol=1e-5)


def test_no_key_drops_nothing():
    """The key of an inactive dropout leaves every input."""
    assert 0 == NOTHING_DROPPED.threshold


@pytest.mark.skipif(not ON_GPU, reason="compares with bitsandbytes' CUDA kernel")
def test_8bit_adamw_agrees_with_bitsandbytes_own_kernel():
    """Five steps of both from one start: parameters within 8-bit noise, the same state layout."""
    from bitsandbytes.optim import AdamW8bit

    from mmar_jobs.qlora.adamw8bit import FusedAdamW8bit

    ours, theirs = (torch.nn.Parameter(normal(64, 1024)) for _ in range(2))
    before = ours.detach().clone()
    options = {"lr": 1e-2, "betas": (0.9, 0.98), "weight_decay": 0.1}
    pair = [FusedAdamW8bit([ours], **options), AdamW8bit([theirs], **options)]
    for step in range(5):
        grad = normal(64, 1024, seed=step + 2)
        for factor, optimizer in zip((ours, theirs), pair, strict=True):
            factor.grad = grad.clone()
            optimizer.step()
    moved = (theirs - before).detach().norm()
    assert float((ours - theirs).detach().norm() / moved) < 1e-2
    assert pair[0].state[ours].keys() == pair[1].state[theirs].keys()
