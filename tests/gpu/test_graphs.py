"""Rows replayed from CUDA graphs against the same layers run kernel by kernel.

Not here: the layers' own arithmetic (test_fused.py), speed (mmar-jobs bench train).
"""

import dataclasses
import gc
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

from mmar_jobs.bench.rows import draw_rows
from mmar_jobs.bench.shape import build_thinker
from mmar_jobs.qlora.lora import LoraModel, attach_lora
from mmar_jobs.qlora.loss import token_coefficients
from mmar_jobs.qlora.memory import LEVELS, MemoryPlan
from mmar_jobs.qlora.optimizer import build_optimizer
from mmar_jobs.qlora.packing import TrainRow, pack_row
from mmar_jobs.qlora.recipes import LoraRecipe, TrainRecipe
from mmar_jobs.qlora.step import Fit, row_loss, take_step
from tests.gpu.test_fused import SHAPE, error

DEVICE = torch.device("cuda")
# Sums of flash attention's backward have no order, and later layers multiply what that changes.
NOISE = 5e-3


def adapted(dropout: float = 0.0) -> LoraModel:
    """A small NF4 thinker with LoRA that does something."""
    model = build_thinker(SHAPE, "nf4", dtype=torch.bfloat16, device=DEVICE, seed=0)
    lora = attach_lora(model, LoraRecipe(rank=16, alpha=32.0, dropout=dropout), seed=0)
    generator = torch.Generator().manual_seed(1)
    for factor in lora.factors().values():
        factor.data.copy_(torch.randn(factor.shape, generator=generator) * 0.05)
    return lora


def drawn(tokens: int, example_tokens: int = 40, seed: int = 0) -> tuple[list[TrainRow], Any]:
    """Examples of `tokens` tokens together."""
    audio_token = SHAPE.vocabulary - 1
    return draw_rows(
        tokens, example_tokens, hidden=SHAPE.hidden, audio_token=audio_token, seed=seed
    )


def loss_of(lora: LoraModel, rows: list[TrainRow], audio: Any) -> torch.Tensor:
    """Of all rows as one packed row."""
    coefficients = token_coefficients(
        [row.weight for row in rows], [row.num_labels for row in rows], "example"
    )
    packed = pack_row(rows, list(range(len(rows))))
    return row_loss(lora, rows, packed, audio=audio, coefficients=coefficients)[0]


def trained(lora: LoraModel, *row: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients."""
    for factor in lora.factors().values():
        factor.grad = None
    loss = loss_of(lora, *row)
    loss.backward()
    return loss.detach(), {name: f.grad.clone() for name, f in lora.factors().items()}


def agree(found: Any, expected: Any) -> None:
    """Equal losses, and gradients equal to the noise of flash attention."""
    assert torch.equal(found[0], expected[0])
    for name, grad in expected[1].items():
        assert error(found[1][name], grad.cpu()) < NOISE, name


def eager(lora: LoraModel) -> LoraModel:
    """The same model without graphs."""
    return dataclasses.replace(lora, graphs=None)


@pytest.mark.parametrize("saved", LEVELS)
def test_a_replayed_row_is_the_row(saved):
    """With dropout, whose masks change from row to row, whatever a layer keeps."""
    lora = adapted(dropout=0.2)
    lora.keep(MemoryPlan((saved, LEVELS[-1], saved), 1024, True, {}, 0))
    lora.dropout.active = True
    found = []
    for number in range(3):
        lora.dropout.start_row(number)
        row = drawn(1024, seed=number)
        found.append(trained(lora, *row))
        agree(found[-1], trained(eager(lora), *row))
    assert not torch.equal(found[0][0], found[1][0])


@pytest.mark.parametrize("tokens", [40, 1000, 1023])
def test_padding_changes_nothing(tokens):
    """Padded tokens are a sequence that nobody sees and that has no loss.

    Experts' products are over other tiles then: equal to bf16's rounding.
    """
    lora = adapted()
    row = drawn(tokens)
    found, expected = trained(lora, *row), trained(eager(lora), *row)
    assert found[0].item() == pytest.approx(expected[0].item(), rel=1e-3)
    for name, grad in expected[1].items():
        assert error(found[1][name], grad.cpu()) < 2e-2, name


def test_sizes_take_turns_in_one_pool_of_memory():
    """Each replays what it did when it was captured; smaller ones need no memory of their own."""
    lora = adapted()
    sizes = [1536, 256, 1024, 512, 1280]
    rows = {tokens: drawn(tokens) for tokens in sizes}
    first = {1536: trained(lora, *rows[1536])}
    after_largest = _reserved()
    first |= {tokens: trained(lora, *rows[tokens]) for tokens in sizes[1:]}
    kept = sum(f.numel() * f.element_size() for f in lora.factors().values()) * len(sizes)
    assert _reserved() < 1.3 * after_largest + kept
    for tokens in (*sizes, *reversed(sizes)):
        agree(trained(lora, *rows[tokens]), first[tokens])


def _reserved() -> int:
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()


@pytest.mark.parametrize("accumulates", [True, False])
def test_gradients_of_a_steps_rows_add_up(accumulates):
    """A later row is of a new size, captured while the loss of the first one is still alive."""
    rows = [drawn(512, seed=0), drawn(900, seed=1), drawn(300, seed=2)]
    lora, plain = adapted(), eager(adapted())
    lora.keep(MemoryPlan((LEVELS[-1],) * SHAPE.num_layers, 4096, accumulates, {}, 0))
    losses = []
    for row in rows:
        losses.append((loss_of(lora, *row), loss_of(plain, *row)))
        for loss in losses[-1]:
            loss.backward()
        with torch.no_grad():  # scoring asks the layers themselves
            assert loss_of(lora, *row).item() == pytest.approx(losses[-1][1].item(), rel=1e-3)
    for name, factor in lora.factors().items():
        expected = plain.factors()[name].grad
        assert error(factor.grad, expected.cpu()) < 2e-2, name  # padding gives products other tiles


def test_a_row_must_go_back_before_the_next_goes_forward():
    """Its activations are gone: an error, not another row's gradient."""
    lora = adapted()
    first = loss_of(lora, *drawn(512))
    loss_of(lora, *drawn(512, seed=1)).backward()
    with pytest.raises(AssertionError, match="another row took the place"):
        first.backward()


def test_steps_are_the_steps_without_graphs():
    """Several rows a step, of several sizes, through the optimizer: the same losses, which fall."""
    rows, audio = drawn(6000, example_tokens=350)
    recipe = TrainRecipe(learning_rate=1e-3, examples_per_step=4, token_budget=1024)
    found = []
    for replayed in (True, False):
        lora = adapted()
        lora = lora if replayed else eager(lora)
        fit = Fit(lora, recipe, audio, build_optimizer(lora.factors().values(), recipe))
        steps = [rows[:4], rows[-5:], rows[:4], rows[-5:]]
        found.append([take_step(fit, part, step=at).loss for at, part in enumerate(steps)])
    assert found[0] == pytest.approx(found[1], rel=5e-3)
    assert found[0][2] < found[0][0]
