"""Fused experts and layers against the reference that CPUs run, with the same masks.

On a GPU in bf16 against fp64 or fp32 on CPU, or in fp32 in Triton's interpreter. Not here: single
kernels (test_kernels.py).
"""

import dataclasses
import os
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

triton = pytest.importorskip("triton")
ON_GPU = torch.cuda.is_available()
if not ON_GPU and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

from mmar_jobs.bench.rows import draw_rows  # noqa: E402
from mmar_jobs.bench.shape import build_thinker  # noqa: E402
from mmar_jobs.qlora.attention import row_layout  # noqa: E402
from mmar_jobs.qlora.dropout import Dropout  # noqa: E402
from mmar_jobs.qlora.experts import ExpertLora, experts_forward  # noqa: E402
from mmar_jobs.qlora.fused import ExpertsCall, Projection, lora_experts, route  # noqa: E402
from mmar_jobs.qlora.graphs import _call, _Inputs, _leaves  # noqa: E402
from mmar_jobs.qlora.lora import attach_lora, fuse  # noqa: E402
from mmar_jobs.qlora.loss import token_coefficients  # noqa: E402
from mmar_jobs.qlora.memory import LEVELS, MemoryPlan, ModelShape  # noqa: E402
from mmar_jobs.qlora.nf4 import Nf4Linear, Nf4Weight  # noqa: E402
from mmar_jobs.qlora.packing import pack_row  # noqa: E402
from mmar_jobs.qlora.recipes import LoraRecipe  # noqa: E402
from mmar_jobs.qlora.step import row_loss  # noqa: E402

DEVICE = torch.device("cuda" if ON_GPU else "cpu")
DTYPE = torch.bfloat16 if ON_GPU else torch.float32
BOUND = 2e-2 if ON_GPU else 1e-4  # relative, in the 2-norm; bf16 has 8 bits
SHAPE = ModelShape(
    num_layers=3,
    hidden=256,
    num_experts=4,
    experts_per_token=4,  # all: a near tie must not route the two precisions to other experts
    expert_width=128,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    vocabulary=1024,
)
TOKENS, EXAMPLE_TOKENS = 768, 250  # no padding: with it the masks of routed rows are others
if not ON_GPU:  # the interpreter takes milliseconds for what a GPU does in microseconds
    SHAPE = dataclasses.replace(SHAPE, num_layers=2, hidden=64, num_experts=2, vocabulary=256)
    SHAPE = dataclasses.replace(SHAPE, experts_per_token=2, expert_width=64, head_dim=32)
    TOKENS, EXAMPLE_TOKENS = 20, 8


class Experts(nn.Module):
    """What transformers' experts module is to a backend."""

    def __init__(self, num_experts: int, hidden: int, width: int) -> None:
        super().__init__()
        self.num_experts, self.hidden_dim, self.intermediate_dim = num_experts, hidden, width
        generator = torch.Generator().manual_seed(0)
        for name, shape in (
            ("gate_up_proj", (num_experts, 2 * width, hidden)),
            ("down_proj", (num_experts, hidden, width)),
        ):
            weight = torch.randn(shape, generator=generator) / shape[-1] ** 0.5
            setattr(self, name, nn.Parameter(weight, requires_grad=False))
        self.act_fn = nn.SiLU()


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative error in the 2-norm; that of a zero tensor is the norm of the other."""
    expected = expected.detach().double()
    scale = expected.norm() if expected.any() else torch.ones(())
    return float((actual.detach().double().cpu() - expected).norm() / scale)


@settings(max_examples=10 if ON_GPU else 4, deadline=None)
@given(
    num_tokens=st.integers(1, 150),
    num_experts=st.integers(1, 6),
    rank=st.sampled_from([4, 8, 16, 64]),
    rate=st.sampled_from([0.0, 0.3]),
    keeps=st.booleans(),
    nf4=st.booleans(),
    one_expert=st.booleans(),
)
def test_fused_experts_have_the_references_output_and_gradients(
    *, num_tokens, num_experts, rank, rate, keeps, nf4, one_expert
):
    """E != r, empty experts, one token, all tokens to one expert, ragged sizes; against fp64."""
    experts_per_token = min(2, num_experts)
    plain = Experts(num_experts, 128, 64)
    dropout = Dropout(rate, seed=rank, num_sites=8)
    dropout.active = True
    plain.lora = ExpertLora(plain, rank, scaling=2.0, dropout=dropout)
    generator = torch.Generator().manual_seed(num_tokens)
    for factor in plain.lora.parameters():
        factor.data = torch.randn(factor.shape, generator=generator) / factor.shape[-1] ** 0.5
    hidden = torch.randn(num_tokens, 128, generator=generator).to(DTYPE)
    choice = torch.rand(num_tokens, num_experts, generator=generator)
    index = choice.topk(experts_per_token).indices
    if one_expert:
        index = torch.zeros_like(index)
    weights = torch.rand(num_tokens, experts_per_token, generator=generator).to(DTYPE)
    grad = torch.randn(num_tokens, 128, generator=generator).to(DTYPE)
    gate_up, down = plain.gate_up_proj.data.to(DTYPE), plain.down_proj.data.to(DTYPE)
    if nf4:
        gate_up, down = (Nf4Weight.quantize(weight.to(DEVICE)) for weight in (gate_up, down))
        plain.gate_up_proj.data = gate_up.dequantize().cpu()
        plain.down_proj.data = down.dequantize().cpu()
    reference = plain.double()
    for weight, was in ((reference.gate_up_proj, gate_up), (reference.down_proj, down)):
        if not nf4:
            weight.data = was.double()
    inputs = [tensor.double().requires_grad_() for tensor in (hidden, weights)]
    expected = experts_forward(reference, inputs[0], index, inputs[1])
    expected.backward(grad.double())

    lora = ExpertLora(plain, rank, scaling=2.0, dropout=dropout).to(DEVICE)
    lora.load_state_dict({name: f.data.float() for name, f in reference.lora.named_parameters()})
    if not nf4:
        gate_up, down = gate_up.to(DEVICE), down.to(DEVICE)
    call = ExpertsCall(
        Projection((gate_up,), *lora.gate_up_scaling()),
        Projection((down,), *lora.down_scaling()),
        route(index.to(DEVICE), num_experts),
        keeps_gate_up=keeps,
    )
    ours = [tensor.to(DEVICE).requires_grad_() for tensor in (hidden, weights)]
    actual = lora_experts(call, *ours, lora)
    actual.backward(grad.to(DEVICE))
    assert error(actual, expected) < BOUND
    for mine, theirs in zip(ours, inputs, strict=True):
        assert error(mine.grad, theirs.grad) < BOUND
    for name, factor in lora.named_parameters():
        assert error(factor.grad, reference.lora.get_parameter(name).grad) < BOUND, name


def models(quantization: str, dropout: float) -> tuple[Any, Any]:
    """The fused model on the GPU, and the same weights in the fp32 reference on CPU."""
    fused = build_thinker(SHAPE, quantization, dtype=DTYPE, device=DEVICE, seed=0)
    plain = build_thinker(SHAPE, "none", dtype=torch.float32, device=torch.device("cpu"), seed=0)
    for path, module in fused.named_modules():
        for name, weight in module.named_parameters(recurse=False):
            plain.get_submodule(path).get_parameter(name).data = weight.detach().float().cpu()
        if isinstance(module, Nf4Linear | Nf4Weight):
            weight = module.weight if isinstance(module, Nf4Linear) else module
            name = f"{path}.weight" if isinstance(module, Nf4Linear) else path
            if not (isinstance(module, Nf4Weight) and path.endswith(".weight")):
                plain.get_parameter(name).data = weight.dequantize().float().cpu()
    recipe = LoraRecipe(rank=16, alpha=32.0, dropout=dropout)
    ours, reference = (attach_lora(model, recipe, seed=0) for model in (fused, plain))
    generator = torch.Generator().manual_seed(1)
    for name, factor in reference.factors().items():
        if name.endswith("B"):
            drawn = torch.randn(factor.shape, generator=generator) * 0.05
            factor.data.copy_(drawn)
            ours.factors()[name].data.copy_(drawn)
    return ours if ours.is_fused else fuse(ours), reference


def gradients(lora: Any) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Loss, token losses and every factor's gradient on one row of several examples."""
    audio_token = SHAPE.vocabulary - 1
    rows, audio = draw_rows(
        TOKENS, EXAMPLE_TOKENS, hidden=SHAPE.hidden, audio_token=audio_token, seed=0
    )
    packed = pack_row(rows, list(range(len(rows))))
    coefficients = token_coefficients(
        [row.weight for row in rows], [row.num_labels for row in rows], "example"
    )
    lora.dropout.active = True
    for factor in lora.factors().values():
        factor.grad = None
    loss, nll = row_loss(lora, rows, packed, audio=audio, coefficients=coefficients)
    loss.backward()
    grads = {name: factor.grad.clone().cpu() for name, factor in lora.factors().items()}
    return loss.detach().cpu(), nll.detach().cpu(), grads


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_a_fused_model_has_the_references_loss_and_gradients(quantization):
    """As near to fp32 as unfused bf16's; what is kept or computed again for it changes nothing."""
    fused, plain = models(quantization, dropout=0.2)
    exact = gradients(plain)
    found = []
    for saved in LEVELS if ON_GPU or quantization == "nf4" else LEVELS[:1]:
        fused.keep(MemoryPlan((saved,) * SHAPE.num_layers, TOKENS, True, {}, 0))
        found.append(gradients(fused))
    for index, layer in enumerate(fused.layers_before):
        fused.model.model.layers[index] = layer
    # The same precision, by torch's own operations.
    unfused = gradients(dataclasses.replace(fused, layers_before=(), graphs=None))
    loss, nll, grads = found[0]
    assert error(loss, exact[0]) < 2e-3
    assert error(nll, exact[1]) < (1.3 * error(unfused[1], exact[1]) if ON_GPU else BOUND)
    for name, grad in grads.items():
        bound = 1.3 * error(unfused[2][name], exact[2][name]) if ON_GPU else BOUND
        assert error(grad, exact[2][name]) < bound, name
    for other_loss, other_nll, other_grads in found[1:]:
        assert torch.equal(loss, other_loss)
        assert torch.equal(nll, other_nll)
        for name, grad in grads.items():  # the sums of flash attention's backward have no order
            assert error(other_grads[name], grad) <= (BOUND if ON_GPU else 0), name


@pytest.mark.parametrize("saved", LEVELS)
def test_a_layer_computes_with_factors_that_stand_in_for_its_own(saved):
    """As graphs are captured: the same output and gradients, whatever is computed again."""
    lora, _ = models("nf4", dropout=0.2)
    lora.dropout.active = True
    layer: Any = lora.model.model.layers[0]
    layer.saved = saved
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(24, n, generator=generator) for n in (SHAPE.hidden, *[SHAPE.head_dim] * 2)]
    hidden, cos, sin = (tensor.to(DEVICE, DTYPE) for tensor in drawn)
    row = row_layout([16, 8], DEVICE)
    leaves = _leaves(layer)
    inputs = _Inputs(hidden, cos, sin, row.cuts)
    out = _call(layer, leaves, hidden, inputs, row)
    grads = torch.autograd.grad(out.square().sum(), list(leaves.values()))
    own = layer(hidden[None], position_embeddings=(cos[None], sin[None]), row_layout=row)[0]
    factors = [layer.get_parameter(name) for name in leaves]
    wanted = torch.autograd.grad(own.square().sum(), factors)
    assert torch.equal(out, own)
    for name, grad, other in zip(leaves, grads, wanted, strict=True):
        assert error(grad, other.cpu()) <= (BOUND if ON_GPU else 0), name


def test_route_is_stable_and_covers_every_row():
    """Rows in expert order, each token K times, places that lead back."""
    index = torch.tensor([[3, 0], [0, 3], [3, 1]], device=DEVICE)
    routing = route(index, 5)
    assert [0, 1, 2, 0, 1, 2] == routing.token_S.tolist()
    assert [[3, 0], [1, 4], [5, 2]] == routing.place_TK.tolist()
    assert [0, 2, 3, 3, 6, 6] == routing.groups.offsets.tolist()


def test_masks_on_the_gpu_are_those_on_the_cpu():
    """Resume on another device repeats the masks."""
    dropout = Dropout(0.05, seed=1, num_sites=8)
    dropout.active = True
    shape = torch.Size((65, 130))
    here = dropout.mask(shape, 4, device=torch.device("cpu"))
    assert torch.equal(here, dropout.mask(shape, 4, device=DEVICE).cpu())
    dropout.start_row(7)  # keys that kernels hold already follow
    assert torch.equal(
        dropout.mask(shape, 4, device=torch.device("cpu")),
        dropout.mask(shape, 4, device=DEVICE).cpu(),
    )
