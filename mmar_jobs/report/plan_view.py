"""A run beside the plan that was kept before it began: where the plan was wrong, and by how much.

Not here: planning (planning/), and HTML (plan.html.j2).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from mmar_jobs.artifact import Artifact
from mmar_jobs.errors import DataError
from mmar_jobs.layout import estimate_key
from mmar_jobs.planning.estimate import CLIPS, Plan
from mmar_jobs.planning.text import duration, size
from mmar_jobs.report.run_view import Run
from mmar_jobs.report.tables import made_artifacts
from mmar_jobs.store import Store

_STAGES: Final = ("ingest", "generate", "filter", "train", "evaluate", "infer")


@dataclass(frozen=True)
class PlanRow:
    """One quantity in words; `ratio` is actual over planned, empty where one is nothing."""

    name: str
    planned: str
    actual: str
    ratio: str


@dataclass(frozen=True)
class Planned:
    """The comparison, and the plan's own words about its prices."""

    rows: Sequence[PlanRow]
    prices: str


def compare_with_plan(store: Store, run: Run) -> Planned | None:
    """Planned and actual, None where no plan was kept; DataError for one that cannot be read."""
    key = estimate_key(run.run_id)
    if not store.exists(key):
        return None
    try:
        plan = Plan.model_validate_json(store.read(key))
    except ValidationError:
        raise DataError(
            f"{key} in {store.uri} is no plan of this version: delete it, the run is as it was"
        ) from None
    prices = plan.prices
    return Planned(
        rows=list(_rows(plan, list(made_artifacts(run)))),
        prices=f"{prices.label}, {prices.date}, {prices.currency}",
    )


def _rows(plan: Plan, artifacts: Sequence[Artifact]) -> Iterator[PlanRow]:
    actual = _Actual(artifacts)
    yield _row("Iterations", plan.job.iterations, actual.num_iterations, _count)
    for stage in _STAGES:
        planned_s = sum(made.seconds for made in plan.stages if made.stage == stage)
        yield _row(f"Time, {stage}", planned_s, actual.seconds(stage), duration)
    yield _row("Time, all stages", plan.wall_s, actual.seconds(*_STAGES), duration)
    gpu_hours = sum(
        actual.seconds(stage) * plan_gpus / 3600 for stage, plan_gpus in _gpus(plan).items()
    )
    yield _row("GPU hours, on the planned GPUs", plan.gpu_hours, gpu_hours, _hours)
    yield _row("Price of these", plan.price["gpu"], gpu_hours * plan.prices.gpu_hour, _money)
    drawn = [made for made in plan.stages if made.stage == "generate"]
    num_answers = sum(made.num_answers for made in drawn)
    num_tokens = sum(made.num_tokens for made in drawn)
    yield _row("Answers drawn", num_answers, actual.total("generate", "num_candidates"), _count)
    yield _row(
        "Tokens an answer",
        num_tokens / max(1, num_answers),
        actual.total("generate", "num_tokens") / max(1, actual.total("generate", "num_candidates")),
        _hours,
    )
    trained = [made for made in plan.stages if made.stage == "train"]
    for name, field in (("Training examples", "num_examples"), ("Training tokens", "num_tokens")):
        planned = sum(getattr(made, field) for made in trained)
        yield _row(name, planned, actual.total("train", field), _count)
    kept = sum(made.storage_bytes for made in plan.stages if made.stage != CLIPS)
    yield _row("Stored, without clips", kept, actual.num_bytes, size)


def _gpus(plan: Plan) -> dict[str, int]:
    return {made.stage: made.num_gpus for made in plan.stages if made.stage in _STAGES}


@dataclass(frozen=True)
class _Actual:
    """What the manifests say."""

    artifacts: Sequence[Artifact]

    @property
    def num_iterations(self) -> int:
        return sum(made.manifest.stage == "train" for made in self.artifacts)

    @property
    def num_bytes(self) -> int:
        return sum(shard.size_bytes for made in self.artifacts for shard in made.manifest.shards)

    def seconds(self, *stages: str) -> float:
        made = (found.manifest for found in self.artifacts)
        return sum(found.cost.get("seconds", 0.0) for found in made if found.stage in stages)

    def total(self, stage: str, count: str) -> int:
        made = (found.manifest for found in self.artifacts)
        return sum(found.counts.get(count, 0) for found in made if found.stage == stage)


def _row(name: str, planned: float, actual: float, shown: Callable[[float], str]) -> PlanRow:
    ratio = f"{actual / planned:.2g}" if planned and actual else ""
    return PlanRow(name, shown(planned), shown(actual), ratio)


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _hours(value: float) -> str:
    return f"{value:,.1f}"


def _money(value: float) -> str:
    return f"{value:,.2f}"
