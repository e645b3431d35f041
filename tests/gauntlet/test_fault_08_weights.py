"""Fault 8: every example had a weight by its learning zone, and the trainer never looked at it."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from mmar_jobs.errors import ExitCode
from mmar_jobs.qlora.gates import check_weighted_loss
from mmar_jobs.qlora.packing import TrainRow
from mmar_jobs.qlora.recipes import TrainRecipe, Weighting
from mmar_jobs.qlora.trainer import train
from tests import qlora_cases
from tests.gauntlet.conftest import HealthyRun
from tests.gauntlet.planted import Row, Run, stopped

LENGTHS = [(12, 6), (10, 9), (15, 4)]
WEIGHTS = (9.0, 1.0, 0.1)


def first_loss(weights: Sequence[float], weighting: Weighting, only: Sequence[int] = ()) -> float:
    """Loss of one step on some of three rows, before anything was learned."""
    rows, audio = qlora_cases.make_rows(LENGTHS, weights=list(weights))
    kept: list[TrainRow] = [rows[index] for index in only or range(len(rows))]
    recipe = TrainRecipe(
        learning_rate=1e-3, examples_per_step=3, token_budget=96, weighting=weighting
    )
    return train(qlora_cases.adapted(), kept, recipe, audio=audio).first_loss


@pytest.mark.parametrize("weighting", ["example", "token"])
def test_08_the_loss_is_the_weighted_mean(weighting: Weighting) -> None:
    """A step's loss is computed again by hand from its examples: ignoring a weight would show."""
    alone = [first_loss([1.0] * 3, weighting, [index]) for index in range(3)]
    counts = [1, 1, 1] if weighting == "example" else [num for _, num in LENGTHS]

    def mean(weights: Sequence[float]) -> float:
        parts = [weight * count for weight, count in zip(weights, counts, strict=True)]
        return sum(p * loss for p, loss in zip(parts, alone, strict=True)) / sum(parts)

    assert mean(WEIGHTS) == pytest.approx(first_loss(WEIGHTS, weighting), rel=1e-4)
    assert mean([1.0] * 3) != pytest.approx(mean(WEIGHTS), rel=5e-4)


def test_08_a_step_that_ignored_its_weights_is_refused() -> None:
    """Every step proves its own loss: one that took a plain mean stops at once."""
    losses, weights = [2.0, 1.0, 3.0], [4.0, 1.0, 0.25]
    weighted = (8 + 1 + 0.75) / 5.25
    check_weighted_loss(weighted, losses, weights, step=0)
    stop = stopped(lambda: check_weighted_loss(2.0, losses, weights, step=7))
    stop.says(ExitCode.DATA, "step 7", "loss 2", "weights", "1.857")


def train_with(run: Run, weight_of_first: float) -> dict[str, Any]:
    """Train on the healthy examples with another weight for the first; the steps' losses."""

    def weigh(rows: list[Row]) -> list[Row]:
        return [rows[0] | {"weight": weight_of_first}, *rows[1:]]

    run.replant("iter-1/examples", weigh)
    assert ExitCode.DONE == run.cli("train").code
    steps: dict[str, Any] = json.loads(run.path("iter-1/adapter/steps.json").read_text())
    return steps


def test_08_weights_reach_the_adapter(run_after: HealthyRun) -> None:
    """From the store to the factors: another weight in the examples is another adapter."""
    run = run_after("train")
    plain = run.path("iter-1/adapter/adapter_model.safetensors").read_bytes()
    for path in run.path("iter-1/adapter").iterdir():
        path.unlink()
    train_with(run, 50.0)
    assert plain != run.path("iter-1/adapter/adapter_model.safetensors").read_bytes()


def test_08_a_weight_of_zero_leaves_the_zone_out(run_after: HealthyRun) -> None:
    """The healthy questions are of the medium zone: weighed 0, there is nothing left to learn."""
    stop = run_after("generate").cli("filter", "--filter.weights.medium", "0")
    stop.says(ExitCode.DATA, "none of 72 candidates", "zone_weight_zero 36")
