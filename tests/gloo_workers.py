"""Processes that train the tiny model together over gloo; a script, because it forks.

Forked after all imports, so that one import serves every process. Arguments: a folder for what is
found, then scenarios as JSON objects. Not here: any check.
"""

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from mmar_jobs.errors import MmarError, TryAgain
from mmar_jobs.launch import free_port
from mmar_jobs.qlora.distributed import join_workers
from mmar_jobs.qlora.export import export_adapter
from mmar_jobs.qlora.policy import PolicyGradient
from mmar_jobs.qlora.recipes import PolicyRecipe, TrainRecipe
from mmar_jobs.qlora.step import CROSS_ENTROPY, Objective
from mmar_jobs.qlora.trainer import Surroundings, digest_factors, train
from mmar_jobs.stages.checkpoints import StoreCheckpoints
from mmar_jobs.store import open_store
from tests import qlora_cases as cases

LENGTHS = [(12, 6), (10, 9), (15, 4), (11, 3), (9, 8)] * 2


def fit(folder: Path, scenario: dict[str, Any], *, rank: int = 0, num: int = 1) -> dict[str, Any]:
    """Train as one of `num`; returns losses and the factors' digest, and exports the adapter."""
    lora = cases.adapted(cases.RECIPE, fill=False)
    rows, audio = cases.make_rows(LENGTHS, weights=[0.5, 1, 2, 1, 1] * 2)
    objective: Objective = CROSS_ENTROPY
    if scenario.get("policy"):
        objective = PolicyGradient(PolicyRecipe(kl_weight=0.1, example_weight=0.3))
        rows = cases.as_candidates(lora, rows, audio)
    if scenario.get("odd_rows") == rank:
        rows = rows[1:]
    recipe = TrainRecipe(learning_rate=1e-2, token_budget=40, **scenario.get("recipe", {}))

    def on_step(step: int, _num_steps: int, _result: Any) -> None:
        if scenario.get("stop") == [rank, step]:
            raise TryAgain("asked to stop")
        if scenario.get("die") == [rank, step]:
            os._exit(9)

    checkpoints = None
    if "checkpoints" in scenario:
        checkpoints = StoreCheckpoints(open_store(scenario["checkpoints"]), "checkpoint")
    device = torch.device("cpu")
    with join_workers(rank, num, device, timeout_s=30) as workers:
        around = Surroundings(checkpoints=checkpoints, on_step=on_step, workers=workers)
        result = train(lora, rows, recipe, audio=audio, around=around, objective=objective)
    if rank == 0:
        export_adapter(lora, folder, "tiny")
    return {
        "losses": result.losses,
        "grad_norms": result.grad_norms,
        "num_tokens": result.num_tokens,
        "kl_old": [metrics["kl_old"] for metrics in result.metrics],
        "digest": digest_factors(lora),
    }


def run(folder: Path, scenario: dict[str, Any]) -> None:
    """Fork the scenario's processes; each leaves <rank>.json in `folder`."""
    folder.mkdir()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    children = []
    for rank in range(scenario["num"]):
        child = os.fork()
        if child:
            children.append(child)
            continue
        try:
            found = fit(folder, scenario, rank=rank, num=scenario["num"])
        except MmarError as error:
            found = {"error": type(error).__name__, "text": str(error)}
        except BaseException:  # a forked child must never return to the caller
            found = {"error": "defect", "text": traceback.format_exc()}
        (folder / f"{rank}.json").write_text(json.dumps(found))
        os._exit(0)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.optim.AdamW(cases.thinker().lm_head.parameters()).zero_grad()  # imports much, once
    for number, text in enumerate(sys.argv[2:]):
        run(Path(sys.argv[1]) / str(number), json.loads(text))
