"""A plan as tables: stages, totals, what they rest on.

Not here: any number.
"""

from collections.abc import Sequence
from typing import Final

from mmar_jobs.columns import aligned
from mmar_jobs.planning.estimate import Plan, StagePlan

_BYTES: Final = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def plan_text(plan: Plan) -> str:
    """The whole plan."""
    job = plan.job
    shape = plan.shape
    told = (
        f"{job.num_train:,} training, {job.num_heldout:,} held-out, {job.num_benchmark:,} "
        f"benchmark questions; K = {job.num_candidates}, {_many(job.iterations, 'iteration')}, "
        f"objective {job.objective}; "
        f"a model of {_large(shape.parameters)} parameters ({_large(shape.active_parameters)} "
        f"a token), rank {job.rank}: {_large(shape.trained_parameters(job.rank))} trained"
    )
    prices = plan.prices
    return "\n".join(
        [
            f"about {duration(plan.wall_s)}, {plan.gpu_hours:,.1f} GPU hours, "
            f"{size(plan.storage_bytes)} stored, {plan.price['total']:,.2f} {prices.currency} "
            f"({prices.label})",
            told,
            "",
            *aligned(_stage_rows(plan)),
            "",
            *aligned(_price_rows(plan), left=(0, 2)),
            "",
            *_assumption_lines(plan),
            "",
            "every child promoted, no retries, no idle servers; overrule a line by --assume "
            "name=value; --keep lets the run's report compare",
        ]
    )


def _stage_rows(plan: Plan) -> list[tuple[str, ...]]:
    head = ("stage", "wall time", "GPU hours", "answers", "tokens", "stored", "writes", "reads")
    rows: list[tuple[str, ...]] = [head]
    for name in dict.fromkeys(stage.stage for stage in plan.stages):
        same = [stage for stage in plan.stages if stage.stage == name]
        title = f"{name} x {len(same)}" if len(same) > 1 else name
        rows.append((title, *_sums(same)))
    return [*rows, ("total", *_sums(plan.stages))]


def _sums(stages: Sequence[StagePlan]) -> tuple[str, ...]:
    num_tokens = sum(stage.num_tokens for stage in stages)
    return (
        duration(sum(stage.seconds for stage in stages)),
        f"{sum(stage.gpu_hours for stage in stages):,.1f}",
        f"{sum(stage.num_answers for stage in stages):,}",
        f"{num_tokens / 1e6:,.1f} M",
        size(sum(stage.storage_bytes for stage in stages)),
        f"{sum(stage.num_writes for stage in stages):,}",
        f"{sum(stage.num_reads for stage in stages):,}",
    )


def _price_rows(plan: Plan) -> list[tuple[str, ...]]:
    prices = plan.prices
    unit = prices.currency
    months = next(a.value for a in plan.assumptions if a.name == "storage_months")
    return [
        (f"{prices.label}, {prices.date}", unit, ""),
        (
            "GPUs",
            f"{plan.price['gpu']:,.2f}",
            f"{plan.gpu_hours:,.1f} hours at {prices.gpu_hour:g}",
        ),
        (
            "storage",
            f"{plan.price['storage']:,.2f}",
            f"{size(plan.storage_bytes)} for {_many(months, 'month')} at "
            f"{prices.storage_gb_month:g} a GB (at most {size(plan.peak_bytes)} while training)",
        ),
        (
            "requests",
            f"{plan.price['requests']:,.2f}",
            f"{plan.num_writes:,} writes, {plan.num_reads:,} reads",
        ),
        ("total", f"{plan.price['total']:,.2f}", ""),
    ]


def _assumption_lines(plan: Plan) -> list[str]:
    rows = [("assumption", "value", "unit, source")]
    rows += [
        (item.name, f"{item.value:,g}", f"{item.unit}; {item.source}") for item in plan.assumptions
    ]
    return aligned(rows, left=(0, 2))


def _large(count: int) -> str:
    return f"{count / 1e9:.3g} B" if count >= 1e8 else f"{count / 1e6:.3g} M"


def _many(count: float, word: str) -> str:
    return f"{count:g} {word}{'' if count == 1 else 's'}"


def size(num_bytes: float) -> str:
    """Bytes in the largest decimal unit that leaves a number of at least one."""
    for unit, factor in _BYTES:
        if num_bytes >= factor:
            return f"{num_bytes / factor:,.1f} {unit}"
    return f"{num_bytes:,.0f} B"


def duration(seconds: float) -> str:
    """Seconds as a person plans them: 40 s, 12 min, 5 h 10 min, 3 d 4 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
