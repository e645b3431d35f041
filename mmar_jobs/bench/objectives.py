"""The bench of objectives: what one turn of the loop learns by each from the very same candidates.

Equal tokens are generated because they are generated once: for every seed the tiny model answers
the questions of a world of its own, and each objective goes on from a copy of that store. Not here:
the page (objectives_page.py).
"""

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mmar_jobs.artifact import require_artifact
from mmar_jobs.bench.child import flags_of
from mmar_jobs.bench.result import Environment, Measurement, Scalar
from mmar_jobs.cli import run_command
from mmar_jobs.errors import DataError, ExitCode, TryAgain
from mmar_jobs.layout import (
    HELDOUT,
    adapter_key,
    answers_key,
    candidates_key,
    questions_key,
    verdict_key,
)
from mmar_jobs.lineage import read_verdict
from mmar_jobs.questions import read_split
from mmar_jobs.records import Grade
from mmar_jobs.stages.answering import grades_of
from mmar_jobs.stats import mcnemar, wilson_interval
from mmar_jobs.store import open_store
from mmar_jobs.tiny import tiny_model_folder
from mmar_jobs.tiny.build import TinyWorld, build_world
from mmar_jobs.verdict import Verdict

OBJECTIVES: Final = ("rest", "grpo", "rest+grpo")
_RUN_ID: Final = "objectives"
_DRAWN: Final = "drawn"  # the store that all objectives start from


@dataclass(frozen=True, slots=True)
class ObjectivesBench:
    """How many worlds of how many questions; `folder` keeps all: a stopped bench goes on."""

    folder: Path
    num_seeds: int = 5
    num_train: int = 1500
    num_heldout: int = 600


@dataclass(frozen=True, slots=True)
class Learned:
    """What one objective made of one seed; `right` are ids of held-out questions."""

    objective: str
    seed: int
    verdict: Verdict
    right: frozenset[str]
    num_drawn_tokens: int
    num_trained_tokens: int
    train_s: float


@dataclass(frozen=True, slots=True)
class Standing:
    """One objective over all seeds; won and lost are questions against plain fine-tuning."""

    objective: str
    accuracies: Sequence[float]
    interval: tuple[float, float]
    muted: Sequence[float]
    before: Sequence[float]
    chance: float
    num_won: int
    num_lost: int

    @property
    def p_value(self) -> float:
        """Two-sided exact McNemar against plain fine-tuning, over the questions of all seeds."""
        return mcnemar(self.num_lost, self.num_won)

    @property
    def accuracy(self) -> float:
        """Mean over the seeds."""
        return sum(self.accuracies) / len(self.accuracies)


def learn_all(bench: ObjectivesBench) -> list[Learned]:
    """Every objective on every seed; what an earlier attempt has finished is only read."""
    return [
        learned for seed in range(1, bench.num_seeds + 1) for learned in _learn_seed(bench, seed)
    ]


def standings(learned: Sequence[Learned]) -> list[Standing]:
    """The objectives in their own order, each against plain fine-tuning on the same questions."""
    plain = {one.seed: one.right for one in learned if one.objective == OBJECTIVES[0]}
    return [
        _standing([one for one in learned if one.objective == objective], plain)
        for objective in OBJECTIVES
    ]


def measure(
    bench: ObjectivesBench, learned: Sequence[Learned], environment: Environment
) -> Iterator[Measurement]:
    """Held-out accuracy with and without sound, and the time of training, once a seed."""
    for standing in standings(learned):
        own = [one for one in learned if one.objective == standing.objective]
        case: dict[str, Scalar] = {
            "objective": standing.objective,
            "train": bench.num_train,
            "heldout": bench.num_heldout,
            "drawn_tokens": sum(one.num_drawn_tokens for one in own),
        }
        detail = {
            "interval_95": list(standing.interval),
            "before": list(standing.before),
            "won_against_rest": standing.num_won,
            "lost_against_rest": standing.num_lost,
            "p_value_against_rest": standing.p_value,
        }
        accuracies, muted = tuple(standing.accuracies), tuple(standing.muted)
        seconds = tuple(one.train_s for one in own)
        tokens = tuple(float(one.num_trained_tokens) for one in own)
        yield Measurement(
            "objectives/accuracy", "share", "higher", accuracies, case, environment, detail
        )
        yield Measurement("objectives/muted", "share", "none", muted, case, environment)
        yield Measurement("objectives/train_s", "s", "lower", seconds, case, environment)
        yield Measurement("objectives/trained_tokens", "tokens", "lower", tokens, case, environment)


def _standing(own: Sequence[Learned], plain: Mapping[int, frozenset[str]]) -> Standing:
    num_right = sum(len(one.right) for one in own)
    change: Counter[str] = Counter()
    for one in own:
        change["won"] += len(one.right - plain[one.seed])
        change["lost"] += len(plain[one.seed] - one.right)
    return Standing(
        objective=own[0].objective,
        accuracies=[one.verdict.child_accuracy for one in own],
        interval=wilson_interval(num_right, sum(one.verdict.n for one in own)),
        muted=[one.verdict.muted_accuracy or 0.0 for one in own],
        before=[one.verdict.parent_accuracy for one in own],
        chance=sum(one.verdict.chance for one in own) / len(own),
        num_won=change["won"],
        num_lost=change["lost"],
    )


def _learn_seed(bench: ObjectivesBench, seed: int) -> Iterator[Learned]:
    folder = bench.folder / f"seed-{seed}"
    world = build_world(
        folder / "world",
        seed=seed,
        num_train=bench.num_train,
        num_heldout=bench.num_heldout,
        num_benchmark=200,
    )
    drawn = folder / _DRAWN
    _run("ingest", drawn, _sources(world))
    # Policy gradients learn from tokens, which nobody else would record.
    _run("generate", drawn, _MODEL | {"sampling.seed": seed, "objective": "grpo"})
    for objective in OBJECTIVES:
        store = folder / objective
        if not store.exists():
            # A copy that was cut short must not be taken for a whole one.
            part = folder / f"{objective}.part"
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(drawn, part).rename(store)
        chosen: dict[str, object] = {"objective": objective}
        _run("filter", store, chosen)
        _run("train", store, _MODEL | chosen | {"optim.seed": seed})
        _run("evaluate", store, _MODEL | {"sampling.seed": seed})
        yield _read(store, objective, seed)


_MODEL: Final[dict[str, object]] = {"model": tiny_model_folder()}


def _sources(world: TinyWorld) -> dict[str, object]:
    return {"questions": world.train, "heldout": world.heldout, "benchmark": world.benchmark}


def _run(stage: str, store: Path, settings: dict[str, object]) -> None:
    """Run one stage of the demo; TryAgain where it was stopped, DataError where it fails."""
    known: dict[str, object] = {
        "config": tiny_model_folder().parent / "demo.toml",
        "store": store,
        "run-id": _RUN_ID,
    }
    code = run_command(stage, flags_of(known | settings))
    if code == ExitCode.TRY_AGAIN:
        raise TryAgain(f"{stage} was stopped: run the same command again, finished work is kept")
    if code != ExitCode.DONE:
        raise DataError(f"{stage} of {store} ended with exit code {code} and says why above")


def _read(folder: Path, objective: str, seed: int) -> Learned:
    store = open_store(str(folder))
    artifact = require_artifact(store, verdict_key(_RUN_ID, 1), stage="evaluate")
    child = artifact.read_json("verdict.json")["child"]["hash"]
    heldout = read_split(require_artifact(store, questions_key(_RUN_ID), stage="ingest"), HELDOUT)
    answers = require_artifact(store, answers_key(_RUN_ID, child), stage="evaluate")
    grades = grades_of(heldout, answers)
    candidates = require_artifact(store, candidates_key(_RUN_ID, 1), stage="generate")
    adapter = require_artifact(store, adapter_key(_RUN_ID, 1), stage="train")
    return Learned(
        objective=objective,
        seed=seed,
        verdict=read_verdict(artifact),
        right=frozenset(key for key, grade in grades.items() if grade is Grade.CORRECT),
        num_drawn_tokens=candidates.manifest.counts["num_tokens"],
        num_trained_tokens=adapter.manifest.counts["num_tokens"],
        # Of the steps of all attempts; the manifest's own seconds are the last attempt's.
        train_s=adapter.manifest.counts["num_tokens"] / adapter.manifest.cost["tokens_per_s"],
    )
