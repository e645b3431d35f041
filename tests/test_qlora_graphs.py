"""Rows replayed for training, on a CPU: graphs are stood in for by records of torch's operations.

That a row fits its size, what is captured when, whose gradients go where. Not here: CUDA's own
graphs, the real layers and the memory they take turns in (tests/gpu/test_graphs.py).
"""

import itertools
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmar_jobs.qlora import graphs
from mmar_jobs.qlora.dropout import Dropout
from mmar_jobs.qlora.graphs import RowGraphs
from mmar_jobs.qlora.recipes import Saved
from mmar_jobs.qlora.row_size import RowSize, padded_tokens, row_tokens

LENGTHS = st.lists(st.integers(1, 5000), min_size=1, max_size=40)
HIDDEN = 4


@given(lengths=LENGTHS, budget=st.integers(256, 40_000))
def test_a_row_fits_its_size(lengths: list[int], budget: int) -> None:
    """With its padding as one sequence more, which is no longer than the longest."""
    size = RowSize.of(lengths, token_budget=budget, threshold=3)
    padding = size.tokens - sum(lengths)
    assert 0 <= padding < max(256, budget / 8)
    assert len(lengths) < size.num_sequences
    assert max(*lengths, padding) <= size.longest <= size.tokens
    assert size.threshold == 3


@given(budget=st.integers(1, 100_000), data=st.data())
def test_rows_within_the_budget_are_of_few_lengths(budget: int, data: st.DataObject) -> None:
    """Sixteen at most, and none is left out."""
    tokens = data.draw(st.integers(1, budget))
    assert padded_tokens(tokens, budget) in row_tokens(budget)
    assert len(row_tokens(budget)) <= 16


def test_sizes_of_packed_rows() -> None:
    """As packing makes them."""
    assert RowSize.of([300, 700, 30], token_budget=8192, threshold=3) == RowSize(1536, 16, 1536, 3)
    assert RowSize.of([300, 700, 30], token_budget=4096, threshold=3) == RowSize(1280, 16, 1280, 3)
    assert RowSize.of([100] * 16, token_budget=8192, threshold=0).num_sequences == 32
    assert RowSize.of([2500, 900], token_budget=4096, threshold=0).longest == 3584


class Recorded(TorchDispatchMode):
    """A CUDA graph's part on a CPU: what was done to which tensors can be done again."""

    made = 0

    def capture_begin(self, **_: Any) -> None:
        """From here on."""
        type(self).made += 1
        self.done: list[tuple[Any, Any, Any, Any]] = []
        self.__enter__()

    def capture_end(self) -> None:
        """To here."""
        self.__exit__(None, None, None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do it and write it down."""
        found = func(*args, **(kwargs or {}))
        if "empty" not in func.__name__:  # a replay allocates nothing
            self.done.append((func, args, kwargs or {}, found))
        return found

    def replay(self) -> None:
        """Again, with results where they lay."""
        for func, args, kwargs, found in self.done:
            again = func(*args, **kwargs)
            pairs = zip(_tensors(found), _tensors(again), strict=True)
            for before, now in pairs:
                if before.data_ptr() != now.data_ptr():
                    before.copy_(now)


def _tensors(found: Any) -> list[Tensor]:
    found = found if isinstance(found, tuple | list) else (found,)
    return [one.detach() for one in found if isinstance(one, Tensor)]


class Layer(nn.Module):
    """What a fused layer is to its graphs: some factors, frozen weights, sequences that add up."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        draw = (torch.randn(HIDDEN, HIDDEN, generator=generator) / 2 for _ in range(3))
        self.frozen = nn.Parameter(next(draw), requires_grad=False)
        self.lora_A, self.lora_B = (nn.Parameter(each) for each in draw)
        self.saved = Saved()

    def forward(self, hidden_1TH: Tensor, **kwargs: Any) -> Tensor:
        """Each token hears the mean of its own sequence."""
        hidden_TH, cuts = hidden_1TH[0], kwargs["row_layout"].cuts
        own_T = torch.bucketize(torch.arange(hidden_TH.shape[0]), cuts[1:], right=True)
        total_NH = torch.zeros(cuts.numel(), HIDDEN).index_add(0, own_T, hidden_TH)
        count_N = torch.zeros(cuts.numel()).index_add(0, own_T, torch.ones_like(hidden_TH[:, 0]))
        mean_TH = (total_NH / count_N.clamp(min=1)[:, None])[own_T]
        cos_TD = kwargs["position_embeddings"][0][0]
        inner_TH = torch.tanh(mean_TH @ self.lora_A) @ self.lora_B * cos_TD
        return (hidden_TH + torch.tanh(hidden_TH @ self.frozen) + inner_TH)[None]


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> RowGraphs:
    """Two layers and their graphs."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorded)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _device: "a stream")
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", itertools.count(1).__next__)
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(graphs, "_lent", lambda tensor, _graph: tensor.detach())
    Recorded.made = 0
    found = RowGraphs((Layer(1), Layer(2)), Dropout(0.0, seed=0, num_sites=8))
    found.prepare(token_budget=512, lends=False)
    return found


def row(lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """Hidden states, cos and sin of a row."""
    generator = torch.Generator().manual_seed(seed)
    hidden, cos, sin = (torch.randn(sum(lengths), HIDDEN, generator=generator) for _ in range(3))
    return hidden, cos, sin, lengths


def expected(layers: Any, of_row: Any) -> tuple[Tensor, list[Tensor]]:
    """Output and gradients of the factors without graphs or padding."""
    hidden, cos, sin, lengths = of_row
    cuts = torch.tensor([0, *lengths]).cumsum(0)
    for layer in layers:
        layout = graphs.RowLayout(lengths, cuts)
        (hidden,) = layer(
            hidden[None], position_embeddings=(cos[None], sin[None]), row_layout=layout
        )
    factors = [f for layer in layers for f in (layer.lora_A, layer.lora_B)]
    return hidden.detach(), list(torch.autograd.grad(hidden.square().sum(), factors))


def factors_of(found: RowGraphs) -> list[nn.Parameter]:
    """All, bottom first."""
    return [f for layer in found._layers for f in (layer.lora_A, layer.lora_B)]


def train(found: RowGraphs, of_row: Any) -> Tensor:
    """Forward and backward."""
    out = found.forward(*of_row)
    out.square().sum().backward()
    return out.detach()


@pytest.mark.parametrize("lends", [False, True])
def test_rows_of_all_sizes_in_any_order(replayed: RowGraphs, *, lends: bool) -> None:
    """Outputs and gradients are those without graphs; each size is captured once, both ways."""
    replayed.prepare(token_budget=512, lends=lends)
    rows = [[200, 30], [500], [1, 1, 254], [130, 170], [256], [9] * 20, [200, 30]]
    for seed, lengths in enumerate(rows):
        for factor in factors_of(replayed):
            factor.grad = None
        out = train(replayed, row(lengths, seed))
        wanted, grads = expected(replayed._layers, row(lengths, seed))
        torch.testing.assert_close(out, wanted)
        for factor, grad in zip(factors_of(replayed), grads, strict=True):
            torch.testing.assert_close(factor.grad, grad)
    assert Recorded.made == 4 * 3  # (256, 16), (512, 16), (256, 32) twice a layer


@pytest.mark.parametrize("lends", [False, True])
def test_gradients_of_a_steps_rows_add_up(replayed: RowGraphs, *, lends: bool) -> None:
    """Also where a later row is of a size that is captured while the first one's loss lives."""
    replayed.prepare(token_budget=512, lends=lends)
    rows = [row([200, 30], 1), row([400], 2), row([100], 3)]
    losses = []
    for one in rows:
        losses.append(replayed.forward(*one).square().sum())
        losses[-1].backward()
    grads = [expected(replayed._layers, one)[1] for one in rows]
    for factor, *parts in zip(factors_of(replayed), *grads, strict=True):
        torch.testing.assert_close(factor.grad, sum(parts))


def test_an_optimizer_that_moves_factors_in_place_is_followed(replayed: RowGraphs) -> None:
    """Graphs read the factors where they lie."""
    train(replayed, row([200]))
    with torch.no_grad():
        for factor in factors_of(replayed):
            factor.mul_(0.5).grad = None
    out = train(replayed, row([200]))
    torch.testing.assert_close(out, expected(replayed._layers, row([200]))[0])


def test_a_row_goes_back_once_and_before_the_next_goes_forward(replayed: RowGraphs) -> None:
    """Its activations are gone after either: an error, not another row's gradient."""
    first = replayed.forward(*row([200])).sum()
    second = replayed.forward(*row([300])).sum()
    with pytest.raises(AssertionError, match="another row took the place"):
        first.backward()
    second.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="another row took the place"):
        second.backward()


def test_the_size_longest_unused_makes_room(replayed: RowGraphs) -> None:
    """Sixteen are kept."""
    replayed.prepare(token_budget=8192, lends=False)
    for number in range(1, 18):
        train(replayed, row([256 * number]))
    assert len(replayed._captured) == 9  # half of the sizes were another's
    replayed.prepare(token_budget=256, lends=False)
    for number in range(1, 18):
        train(replayed, row([256 * number]))
    made = Recorded.made
    train(replayed, row([256 * 17]))
    assert Recorded.made == made
    train(replayed, row([256]))
    assert (Recorded.made, len(replayed._captured)) == (made + 4, 16)


def test_out_of_memory_takes_the_other_sizes_away_once(
    replayed: RowGraphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing to take away it is the caller's error."""
    captures = replayed._capture_layers
    failures = iter([True, False, True, True])

    def fail(*args: Any) -> Any:
        if next(failures):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return captures(*args)

    train(replayed, row([200]))
    monkeypatch.setattr(replayed, "_capture_layers", fail)
    train(replayed, row([400]))
    assert len(replayed._captured) == 1
    with pytest.raises(torch.OutOfMemoryError):
        replayed.forward(*row([200]))
