"""Tests of the picture of a policy gradient's steps."""

from dataclasses import fields
from typing import Any

from mmar_jobs.report.policy_plot import policy
from mmar_jobs.report.run_view import Iteration


def iteration(number: int, *steps: tuple[float, float]) -> Iteration:
    """An iteration of which only the steps' divergence and clipped share are known."""
    known: dict[str, Any] = dict.fromkeys((field.name for field in fields(Iteration)), None)
    metrics = tuple({"kl_old": kl, "clip_fraction": clipped} for kl, clipped in steps)
    return Iteration(**known | {"number": number, "step_metrics": metrics})


def test_policy_plot_tells_its_last_steps() -> None:
    """Both quantities have an axis, and who cannot see it is told where each iteration ended."""
    turns = [iteration(1, (0, 0), (0.02, 0.1)), iteration(2), iteration(3, (0.05, 0.25))]
    svg = policy(turns)
    told = (
        "iteration 1: 0.020 nats a token and 10.0% clipped at the last of 2 steps; "
        "iteration 3: 0.050 nats a token and 25.0% clipped at the last of 1 steps"
    )
    assert told in svg
    for text in ("divergence,", "nats a token", "clipped", "optimizer step"):
        assert text in svg


def test_equal_steps_give_equal_pictures() -> None:
    """Nothing in it comes from a clock."""
    turns = [iteration(1, (0.01, 0.02))]
    assert policy(turns) == policy(turns)
