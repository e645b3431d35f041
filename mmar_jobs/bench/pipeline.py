"""The bench of the whole loop: the tiny model, a small world, one process from end to end.

Not here: how good the model gets (accuracy.py judges predictions).
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mmar_jobs.artifact import MANIFEST, find_artifact
from mmar_jobs.bench.child import Spent, flags_of, run_measured
from mmar_jobs.bench.result import Environment, Measurement, Scalar
from mmar_jobs.layout import run_key
from mmar_jobs.store import open_store
from mmar_jobs.tiny import tiny_model_folder
from mmar_jobs.tiny.build import TinyWorld, build_world

_RUN_ID: Final = "bench"
_MODEL_STAGES: Final = frozenset({"generate", "train", "evaluate", "infer"})


@dataclass(frozen=True, slots=True)
class PipelineBench:
    """How many questions, turns of the loop and repeats."""

    num_train: int = 200
    num_heldout: int = 60
    num_benchmark: int = 20
    iterations: int = 1
    repeats: int = 3
    seed: int = 0


def run_pipeline_bench(bench: PipelineBench, environment: Environment) -> Iterator[Measurement]:
    """Wall time, time outside the stages that run the model, CPU time and peak memory of a run."""
    with tempfile.TemporaryDirectory(prefix="mmar-bench-") as folder:
        world = build_world(
            Path(folder) / "world",
            seed=bench.seed,
            num_train=bench.num_train,
            num_heldout=bench.num_heldout,
            num_benchmark=bench.num_benchmark,
        )
        spent: list[Spent] = []
        outside_s: list[float] = []
        for repeat in range(bench.repeats):
            store = Path(folder) / f"store-{repeat}"
            spent.append(run_measured(_arguments(bench, world, store)))
            outside_s.append(spent[-1].wall_s - _model_s(store))
    case: dict[str, Scalar] = {
        "train": bench.num_train,
        "heldout": bench.num_heldout,
        "benchmark": bench.num_benchmark,
        "iterations": bench.iterations,
    }

    def made(name: str, unit: str, values: list[float]) -> Measurement:
        return Measurement(f"pipeline/{name}", unit, "lower", tuple(values), case, environment)

    yield made("wall_s", "s", [one.wall_s for one in spent])
    yield made("outside_model_s", "s", outside_s)
    yield made("cpu_s", "s", [one.cpu_s for one in spent])
    yield made("peak_mb", "MB", [one.peak_bytes / 1e6 for one in spent])


def _arguments(bench: PipelineBench, world: TinyWorld, store: Path) -> list[str]:
    settings = {
        "config": tiny_model_folder().parent / "demo.toml",
        "store": store,
        "run-id": _RUN_ID,
        "model": tiny_model_folder(),
        "questions": world.train,
        "heldout": world.heldout,
        "benchmark": world.benchmark,
        "iterations": bench.iterations,
        "sampling.questions-per-iteration": bench.num_train,
    }
    return ["run", *flags_of(settings)]


def _model_s(folder: Path) -> float:
    """Seconds of the stages that run the model, as their artifacts recorded them."""
    store = open_store(str(folder))
    keys = [key for key in store.list(f"{run_key(_RUN_ID)}/") if key.endswith(f"/{MANIFEST}")]
    found = [find_artifact(store, key.removesuffix(f"/{MANIFEST}")) for key in keys]
    return sum(
        one.manifest.cost.get("seconds", 0.0)
        for one in found
        if one is not None and one.manifest.stage in _MODEL_STAGES
    )
