"""Put findings, plots, cases and tables into one HTML page that needs nothing else.

Not here: any number; the template only words them. Everything that comes from data is escaped by
jinja, and the page's content policy allows neither scripts nor the network.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mmar_jobs.report import plots, policy_plot, words
from mmar_jobs.report.cases import Case, count_changes
from mmar_jobs.report.findings import Comparison, benchmark, headline
from mmar_jobs.report.plan_view import Planned
from mmar_jobs.report.run_view import Run
from mmar_jobs.report.tables import (
    artifact_rows,
    drop_rows,
    policy_rows,
    settings_groups,
    stage_seconds,
)

TEMPLATE: Final = "page.html.j2"
MAX_REJECTS: Final = 25
DECISIONS: Final = {
    "promote": "promoted",
    "keep_parent": "parent kept",
    "stop": "refused, run stopped",
}


def render_page(
    run: Run,
    comparison: Comparison | None,
    cases: Sequence[Case],
    *,
    planned: Planned | None = None,
) -> str:
    """The whole page; equal runs give equal text."""
    return (
        open_templates(Path(__file__).parent)
        .get_template(TEMPLATE)
        .render(
            run=run,
            seen=comparison,
            after_name=_after_name(comparison),
            headline=headline(run, comparison),
            changes=count_changes(comparison) if comparison else {},
            plots={name: Markup(svg) for name, svg in _plots(run, comparison).items()},  # noqa: S704
            cases=cases,
            benchmark=benchmark(run),
            drops=drop_rows(run.iterations),
            policies=policy_rows(run.iterations),
            artifacts=artifact_rows(run),
            settings=settings_groups(run),
            total_s=sum(sum(row.values()) for row in stage_seconds(run).values()),
            max_rejects=MAX_REJECTS,
            planned=planned,
        )
    )


def open_templates(*folders: Path) -> Environment:
    """The templates in `folders`, with the report's words for numbers and everything escaped."""
    environment = Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(_FILTERS)
    return environment


def _after_name(comparison: Comparison | None) -> str:
    if comparison is None:
        return ""
    number = comparison.after.iteration
    return f"iteration {number}" if comparison.is_promoted else f"iteration {number} (refused)"


def _plots(run: Run, comparison: Comparison | None) -> dict[str, str]:
    """Every plot for which there is something to draw."""
    turns = run.iterations
    made = {}
    if any(turn.verdict for turn in turns):
        made["accuracy"] = plots.accuracy(turns)
    if any(turn.examples for turn in turns):
        made["zones"] = plots.zones(turns)
    if any(turn.num_tokens for turn in turns):
        made["tokens"] = plots.token_lengths(turns)
    if any(turn.losses for turn in turns):
        made["losses"] = plots.losses(turns)
    if any(turn.step_metrics for turn in turns):
        made["policy"] = policy_plot.policy(turns)
    if comparison and comparison.categories:
        made["categories"] = plots.categories(comparison.categories, _after_name(comparison))
    times = stage_seconds(run)
    if times:
        made["times"] = plots.stage_times(times)
    return made


def _decision(value: str) -> str:
    return DECISIONS[value]


_FILTERS: Final[Mapping[str, Callable[..., Any]]] = {
    "percent": words.percent,
    "points": words.points,
    "interval": words.interval,
    "gain_interval": words.gain_interval,
    "p_value": words.p_value,
    "decision": _decision,
    "count": words.count,
    "duration": words.duration,
}
