"""The grouped LoRA layer and the experts against plain loops in fp64; dropout's statistics."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from mmar_jobs.qlora.dropout import Dropout
from mmar_jobs.qlora.experts import ExpertLora, experts_forward
from mmar_jobs.qlora.grouped import LoraFactors, grouped_linear, grouped_lora_linear
from mmar_jobs.qlora.routing import sort_by_expert

HIDDEN, WIDTH, RANK = 6, 5, 3


class Experts(nn.Module):
    """The attributes of transformers' experts module that the backend reads."""

    def __init__(self, num_experts: int, generator: torch.Generator) -> None:
        super().__init__()
        self.num_experts, self.hidden_dim, self.intermediate_dim = num_experts, HIDDEN, WIDTH
        draw = {"generator": generator, "dtype": torch.float64}
        self.gate_up_proj = nn.Parameter(torch.randn(num_experts, 2 * WIDTH, HIDDEN, **draw))
        self.down_proj = nn.Parameter(torch.randn(num_experts, HIDDEN, WIDTH, **draw))
        self.requires_grad_(requires_grad=False)
        self.act_fn = nn.SiLU()


def make_experts(num_experts: int, seed: int) -> tuple[Experts, ExpertLora, torch.Generator]:
    """An experts module with random fp64 weights and random factors."""
    generator = torch.Generator().manual_seed(seed)
    experts = Experts(num_experts, generator)
    lora = ExpertLora(
        experts, RANK, scaling=1.7, dropout=Dropout(0.0, seed=0, num_sites=8)
    ).double()
    with torch.no_grad():
        for factor in lora.parameters():
            factor.copy_(torch.randn(factor.shape, generator=generator, dtype=torch.float64))
    experts.lora = lora
    return experts, lora, generator


def naive_experts(
    experts: Experts, lora: ExpertLora, x_TH: Tensor, index_TK: Tensor, weight_TK: Tensor
) -> Tensor:
    """Token by token, with the weight-sized delta that the backend never forms."""
    out = []
    for token, chosen, weights in zip(x_TH, index_TK.tolist(), weight_TK, strict=True):
        total = torch.zeros_like(token)
        for expert, weight in zip(chosen, weights, strict=True):
            gate_A, up_A = lora.gate_up_A[expert].chunk(2, 0)
            gate_W, up_W = experts.gate_up_proj[expert].chunk(2, 0)
            gate = (gate_W + lora.scaling * lora.gate_B[expert] @ gate_A) @ token
            up = (up_W + lora.scaling * lora.up_B[expert] @ up_A) @ token
            down_W = experts.down_proj[expert]
            down_W = down_W + lora.scaling * lora.down_B[expert] @ lora.down_A[expert]
            total = total + weight * (down_W @ (functional.silu(gate) * up))
        out.append(total)
    return torch.stack(out)


@settings(deadline=None, max_examples=25)
@given(
    num_experts=st.integers(1, 7),
    num_tokens=st.integers(1, 12),
    used=st.integers(1, 7),
    seed=st.integers(0, 1000),
)
def test_experts_and_gradients_match_the_loop(
    num_experts: int, num_tokens: int, used: int, seed: int
) -> None:
    """Outputs and all gradients equal a naive loop's, with empty experts and one token too."""
    experts, lora, generator = make_experts(num_experts, seed)
    top_k = min(2, num_experts)
    used = max(min(used, num_experts), top_k)
    index_TK = torch.stack(
        [torch.randperm(used, generator=generator)[:top_k] for _ in range(num_tokens)]
    )
    x_TH = torch.randn(num_tokens, HIDDEN, generator=generator, dtype=torch.float64)
    weight_TK = torch.rand(num_tokens, top_k, generator=generator, dtype=torch.float64)
    inputs = [x_TH.requires_grad_(), weight_TK.requires_grad_(), *lora.parameters()]
    probe = torch.randn(num_tokens, HIDDEN, generator=generator, dtype=torch.float64)
    ours = experts_forward(experts, x_TH, index_TK, weight_TK)
    naive = naive_experts(experts, lora, x_TH, index_TK, weight_TK)
    torch.testing.assert_close(ours, naive, rtol=1e-10, atol=1e-10)
    expected = torch.autograd.grad((naive * probe).sum(), inputs)
    actual = torch.autograd.grad((ours * probe).sum(), inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_gradcheck_with_dropout() -> None:
    """Numerical gradients of the grouped layer agree, with a dropout mask and two branches."""
    generator = torch.Generator().manual_seed(1)
    counts = [2, 0, 3]

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weight_EOI, mask_SI = draw(3, 4, 6), torch.rand(5, 6, generator=generator) < 0.3

    def layer(x: Tensor, a: Tensor, b_one: Tensor, b_two: Tensor) -> Tensor:
        factors = LoraFactors(a, (b_one, b_two), 1.3, mask_SI)
        return grouped_lora_linear(x, weight_EOI, counts, factors)

    inputs = (draw(5, 6), draw(3, 4, 6), draw(3, 2, 2), draw(3, 2, 2))
    assert torch.autograd.gradcheck(layer, tuple(x.requires_grad_() for x in inputs))


def test_no_lora_is_the_base_alone() -> None:
    """With zero factors the layer is the frozen matrices, bit for bit in fp64."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)
    zeros = LoraFactors(x.new_zeros(3, 2, 6), (x.new_zeros(3, 4, 2),), 2.0, None)
    expected = grouped_linear(x, weight, [1, 0, 4])
    torch.testing.assert_close(grouped_lora_linear(x, weight, [1, 0, 4], zeros), expected)


@given(
    st.lists(st.lists(st.integers(0, 4), min_size=2, max_size=2), min_size=1, max_size=20).map(
        torch.tensor
    )
)
def test_sorting_is_a_permutation_in_expert_order(index_TK: Tensor) -> None:
    """Order and place are inverse, rows are sorted by expert, counts add up."""
    routing = sort_by_expert(index_TK, 5)
    flat = index_TK.reshape(-1)
    assert torch.equal(flat[routing.order_S], flat.sort().values)
    assert torch.equal(routing.order_S[routing.place_S], torch.arange(flat.numel()))
    assert sum(routing.counts) == flat.numel()


def test_dropout_mask_depends_on_row_and_site_only() -> None:
    """The same (seed, row, site) repeats the mask; another of any of them gives another one."""
    shape, device = torch.Size((64, 32)), torch.device("cpu")

    def mask(seed: int, row: int, site: int) -> Tensor:
        dropout = Dropout(0.3, seed=seed, num_sites=8)
        dropout.active = True
        dropout.start_row(row)
        drawn = dropout.mask(shape, site, device=device)
        assert drawn is not None
        return drawn

    assert torch.equal(mask(1, 2, 3), mask(1, 2, 3))
    for other in ((0, 2, 3), (1, 3, 3), (1, 2, 4), (2, 1, 3)):
        agreement = (mask(1, 2, 3) == mask(*other)).float().mean()
        assert 0.5 < agreement < 0.66  # unrelated masks agree on 0.3² + 0.7² = 0.58


def test_dropout_rate_and_mean() -> None:
    """The share dropped is the rate to four sigma, and what is kept is scaled to the same mean."""
    dropout = Dropout(0.05, seed=3, num_sites=8)
    dropout.active = True
    mask = dropout.mask(torch.Size((1000, 1000)), 0, device=torch.device("cpu"))
    assert mask is not None
    assert abs(float(mask.float().mean()) - 0.05) < 4 * (0.05 * 0.95 / 1e6) ** 0.5
    assert abs(dropout.kept_share - 0.95) < 1e-5


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_dropout_of_one_input_says_nothing_of_another(rate: float) -> None:
    """Neighbours in a row and a column, and one input in two masks, drop independently.

    Two of them drop together with probability p²; four sigma of 4.2 million pairs.
    """
    dropout, shape = Dropout(rate, seed=4, num_sites=8), torch.Size((2050, 2050))
    dropout.active = True

    def mask(row: int, site: int) -> Tensor:
        dropout.start_row(row)
        drawn = dropout.mask(shape, site, device=torch.device("cpu"))
        assert drawn is not None
        return drawn

    first = mask(0, 0)
    pairs = {
        "next column": (first[:, 1:], first[:, :-1]),
        "next but one": (first[:, 2:], first[:, :-2]),
        "next row": (first[1:], first[:-1]),
        "next site": (first, mask(0, 1)),
        "next packed row": (first, mask(1, 0)),
    }
    both = rate * rate
    for name, (one, other) in pairs.items():
        sigma = (both * (1 - both) / one.numel()) ** 0.5
        assert abs(float((one & other).float().mean()) - both) < 4 * sigma, name
    for counts in (first.float().mean(0), first.float().mean(1)):  # no column, no row stands out
        sigma = (rate * (1 - rate) / 2050) ** 0.5
        assert float((counts - rate).abs().max()) < 5.5 * sigma


def test_dropout_is_off_outside_training() -> None:
    """An inactive dropout, or a rate of zero, makes no mask and no scale."""
    shape, device = torch.Size((4, 4)), torch.device("cpu")
    off, zero = Dropout(0.5, seed=0, num_sites=8), Dropout(0.0, seed=0, num_sites=8)
    zero.active = True
    for dropout in (off, zero):
        assert dropout.mask(shape, 0, device=device) is None
        assert dropout.kept_share == 1.0
