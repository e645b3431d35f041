"""Training on a GPU: one wait a step, checkpoints beside the training, moments that come back."""

import json
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

from mmar_jobs.bench.rows import draw_rows
from mmar_jobs.bench.shape import build_thinker
from mmar_jobs.errors import TryAgain
from mmar_jobs.qlora.checkpoint import Snapshot, restore_state
from mmar_jobs.qlora.lora import LoraModel, attach_lora
from mmar_jobs.qlora.optimizer import build_optimizer
from mmar_jobs.qlora.packing import TrainRow
from mmar_jobs.qlora.recipes import LoraRecipe, TrainRecipe
from mmar_jobs.qlora.step import Fit, take_step
from mmar_jobs.qlora.trainer import Surroundings, TrainResult, train
from tests.gpu.test_fused import SHAPE

DEVICE = torch.device("cuda")
RECIPE = TrainRecipe(
    learning_rate=1e-3,
    examples_per_step=4,
    token_budget=1024,
    checkpoint_every_steps=2,
    optimizer="adamw8bit",
)
RECIPES = [RECIPE, replace(RECIPE, optimizer="adamw")]


class Kept:
    """Checkpoints in memory."""

    def __init__(self) -> None:
        self.saved: dict[int, bytes] = {}

    def latest(self) -> int | None:
        """The newest."""
        return max(self.saved, default=None)

    @contextmanager
    def load(self, step: int) -> Iterator[Path]:
        """As a file."""
        with tempfile.NamedTemporaryFile() as file:
            file.write(self.saved[step])
            file.flush()
            yield Path(file.name)

    def save(self, step: int, parts: Iterator[memoryview]) -> None:
        """Keep all."""
        self.saved[step] = b"".join(bytes(part) for part in parts)


def adapted() -> LoraModel:
    """A small NF4 thinker with LoRA."""
    model = build_thinker(SHAPE, "nf4", dtype=torch.bfloat16, device=DEVICE, seed=0)
    model.audio_tower = torch.nn.Linear(2, 2, device=DEVICE)  # what must stay as it is
    return attach_lora(model, LoraRecipe(rank=16, alpha=32.0, dropout=0.05), seed=0)


def drawn(lora: LoraModel) -> tuple[list[TrainRow], dict[str, torch.Tensor]]:
    """Four steps of one row of 1,024 tokens each."""
    audio_token = lora.model.config.audio_token_id
    return draw_rows(4096, 256, hidden=SHAPE.hidden, audio_token=audio_token, seed=0)


def fit(recipe: TrainRecipe, kept: Kept | None, stop_after: int | None = None) -> TrainResult:
    """Train four steps."""
    lora = adapted()
    rows, audio = drawn(lora)

    def on_step(step: int, _num_steps: int, _result: Any) -> None:
        if step == stop_after:
            raise TryAgain("preempted")

    around = Surroundings(checkpoints=kept, on_step=on_step)
    return train(lora, rows, recipe, audio=audio, around=around)


@pytest.mark.parametrize("recipe", RECIPES)
def test_resumed_on_a_gpu_goes_on_as_if_never_stopped(recipe: TrainRecipe) -> None:
    """Sums on a GPU may differ by rounding, so losses are compared within 1e-3."""
    expected = fit(recipe, None)
    kept = Kept()
    with pytest.raises(TryAgain):
        fit(recipe, kept, stop_after=3)
    assert list(kept.saved) == [2, 3]
    resumed = fit(recipe, kept)
    assert resumed.losses == pytest.approx(expected.losses, rel=1e-3)
    assert len(resumed.losses) == 4


def test_a_step_waits_for_the_gpu_once() -> None:
    """But for the numbers of the step, nothing on the host waits: torch counts the waits."""
    lora = adapted()
    rows, audio = drawn(lora)
    optimizer = build_optimizer(lora.factors().values(), RECIPE)
    one = Fit(lora, RECIPE, audio, optimizer)
    take_step(one, rows[:4], step=0)
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            take_step(one, rows[4:8], step=1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [
        f"{one.filename}:{one.lineno}"
        for one in caught
        if "called a synchronizing" in str(one.message)
    ]
    assert len(waits) == 1, waits


@pytest.mark.parametrize("recipe", RECIPES)
def test_state_on_a_gpu_is_what_the_checkpoint_holds(recipe: TrainRecipe) -> None:
    """Restored factors and moments equal the saved ones to the bit."""
    kept = Kept()
    with pytest.raises(TryAgain):
        fit(recipe, kept, stop_after=2)
    lora = adapted()
    optimizer = build_optimizer(lora.factors().values(), recipe)
    with kept.load(2) as path:
        with safe_open(path, framework="pt") as file:
            fingerprint = json.loads(file.metadata()["mmar_checkpoint"])["fingerprint"]
        progress, reference = restore_state(path, lora, optimizer, fingerprint=fingerprint)
    snapshot = Snapshot()
    snapshot.take(lora, optimizer, progress, reference=reference, fingerprint=fingerprint)
    assert b"".join(bytes(part) for part in snapshot.parts()) == kept.saved[2]
