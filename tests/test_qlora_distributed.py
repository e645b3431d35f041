"""Several processes train what one trains: the same losses, one adapter, and an end together."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmar_jobs.layout import ADAPTER_WEIGHTS
from tests.gloo_workers import LENGTHS, fit

ROOT = Path(__file__).parents[1]
STEPS = {"examples_per_step": 4, "num_epochs": 2}
NUM_STEPS = 6


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What every process of every scenario left, by scenario; and the adapters' folders."""
    folder = tmp_path_factory.mktemp("gloo")
    scenarios: dict[str, dict[str, Any]] = {
        "two": {"num": 2, "recipe": STEPS},
        "idle": {"num": 3, "recipe": {"examples_per_step": 1}},
        "stopped": {
            "num": 2,
            "recipe": STEPS,
            "stop": [1, 3],
            "checkpoints": str(folder / "store"),
        },
        "resumed": {"num": 3, "recipe": STEPS, "checkpoints": str(folder / "store")},
        "died": {"num": 2, "recipe": STEPS, "die": [1, 2]},
        "odd": {"num": 2, "recipe": STEPS, "odd_rows": 1},
        "policy": {"num": 3, "recipe": STEPS, "policy": True},
    }
    arguments = [str(folder / "found"), *(json.dumps(one) for one in scenarios.values())]
    (folder / "found").mkdir()
    subprocess.run(
        [sys.executable, "-m", "tests.gloo_workers", *arguments], cwd=ROOT, check=True, timeout=240
    )
    left: dict[str, list[dict[str, Any]]] = {}
    for number, (name, scenario) in enumerate(scenarios.items()):
        place = folder / "found" / str(number)
        files = [place / f"{rank}.json" for rank in range(scenario["num"])]
        left[name] = [json.loads(file.read_text()) for file in files if file.exists()]
        left[name][0]["folder"] = str(place)
    return left


def factors(folder: Path) -> dict[str, torch.Tensor]:
    """An exported adapter's tensors."""
    return load_file(folder / ADAPTER_WEIGHTS)


def check_same(found: list[dict[str, Any]], expected: dict[str, Any], folder: Path) -> None:
    """All processes hold one adapter; losses and factors are the single process's to rounding.

    Sums over rows come in another order: losses differ by 1e-6, and a factor by no more than a
    hundredth of one step of the learning rate 1e-2.
    """
    assert len({one["digest"] for one in found}) == 1
    for one in found:
        assert one["num_tokens"] == expected["num_tokens"]
        assert one["losses"] == pytest.approx(expected["losses"], rel=1e-5)
        assert one["grad_norms"] == pytest.approx(expected["grad_norms"], rel=1e-4)
    alone, together = factors(folder), factors(Path(found[0]["folder"]))
    assert alone.keys() == together.keys()
    worst = max((alone[name] - together[name]).abs().max().item() for name in alone)
    assert worst < 1e-4


def test_two_processes_train_what_one_trains(
    found: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """Equal global batch, equal losses, norms, tokens and factors; identical on both."""
    check_same(found["two"], fit(tmp_path, {"recipe": STEPS}), tmp_path)


def test_processes_without_a_row_take_part(
    found: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """One row a step and three processes: two add zeros, and all end with the one adapter."""
    check_same(found["idle"], fit(tmp_path, {"recipe": {"examples_per_step": 1}}), tmp_path)
    assert len(found["idle"][0]["losses"]) == len(LENGTHS)


def test_one_that_is_asked_to_stop_stops_all_and_others_go_on(
    found: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """A stop of process 1 ends both after that step; three go on where two were."""
    assert [one["error"] for one in found["stopped"]] == ["TryAgain"] * 2
    assert {one["text"] for one in found["stopped"]} == {"asked to stop"}
    check_same(found["resumed"], fit(tmp_path, {"recipe": STEPS}), tmp_path)
    assert found["resumed"][0]["losses"][:3] == found["two"][0]["losses"][:3]
    assert len(found["resumed"][0]["losses"]) == NUM_STEPS


def test_a_process_that_dies_ends_the_others_with_try_again(
    found: dict[str, list[dict[str, Any]]],
) -> None:
    """The survivor says that another one is gone, and that the same command goes on."""
    (survivor,) = found["died"]
    assert survivor["error"] == "TryAgain"
    assert "another process of this training is gone" in survivor["text"]


def test_processes_with_other_examples_are_refused(
    found: dict[str, list[dict[str, Any]]],
) -> None:
    """Before the first step, the first that differs is named."""
    assert {one["error"] for one in found["odd"]} == {"GateError"}
    assert all("process 1 of 2 has other examples" in one["text"] for one in found["odd"])


def test_a_policy_gradient_is_shared_as_well(
    found: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """Scoring and steps are dealt out; all see one divergence, that of a single process."""
    expected = fit(tmp_path, {"recipe": STEPS, "policy": True})
    check_same(found["policy"], expected, tmp_path)
    for one in found["policy"]:
        assert one["kl_old"] == pytest.approx(expected["kl_old"], rel=1e-3, abs=1e-7)
