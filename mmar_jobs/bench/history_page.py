"""The history of all figures as one HTML page that needs nothing else.

Not here: what changed when (history.py).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from markupsafe import Markup

from mmar_jobs.bench.gate import case_text
from mmar_jobs.bench.history import ChangePoint, Series
from mmar_jobs.report.page import open_templates
from mmar_jobs.report.svg import AFTER, BEFORE, GRID, INK, MUTED, SOFT, figure, to_svg

TEMPLATE: Final = "history.html.j2"
_COMMIT: Final = 12
_MAX_TICKS: Final = 6


class Change(NamedTuple):
    """One change of level in words."""

    name: str
    case: str
    device: str
    commit: str
    measured_at: str
    percent: str
    tone: str


class Picture(NamedTuple):
    """One figure over time."""

    title: str
    case: str
    svg: Markup


def render_history(all_series: Sequence[Series], name: str) -> str:
    """The whole page; equal histories give equal text."""
    changes = [_change(series, point) for series in all_series for point in series.changes]
    pictures: dict[str, list[Picture]] = {}
    for number, series in enumerate(all_series):
        title = f"{series.last.name}, {series.last.unit}"
        drawn = Markup(_plot(series, f"history-{number}", title))  # noqa: S704 - matplotlib escapes
        made = Picture(title, case_text(series.last), drawn)
        pictures.setdefault(series.last.environment.device, []).append(made)
    here = Path(__file__).parent
    return (
        open_templates(here, here.parent / "report", here.parent / "analysis")
        .get_template(TEMPLATE)
        .render(
            name=name,
            num_figures=sum(len(series.figures) for series in all_series),
            commits={one.environment.commit for series in all_series for one in series.figures},
            changes=sorted(changes, key=lambda change: change.measured_at, reverse=True),
            num_worse=sum(change.tone == "bad" for change in changes),
            pictures=pictures,
        )
    )


def _change(series: Series, point: ChangePoint) -> Change:
    one = series.figures[point.index]
    tones = {True: "good", False: "bad", None: "open"}
    return Change(
        name=one.name,
        case=case_text(one),
        device=one.environment.device,
        commit=one.environment.commit[:_COMMIT],
        measured_at=one.environment.measured_at,
        percent=f"{100 * point.change:+.1f} %",
        tone=tones[series.is_good(point)],
    )


def _plot(series: Series, name: str, title: str) -> str:
    """Median and range of each commit, oldest left; a dashed line where the level changed."""
    figures = series.figures
    places = list(range(len(figures)))
    with figure(5.4, 2.6) as (made, (axes,)):
        for place, one in zip(places, figures, strict=True):
            axes.plot([place, place], [min(one.values), max(one.values)], color=GRID, linewidth=3)
        axes.plot(places, [one.value for one in figures], "o", color=BEFORE, markersize=4)
        for point in series.changes:
            color = MUTED if series.is_good(point) is False else AFTER
            axes.axvline(point.index - 0.5, color=color, linewidth=1.2, linestyle=(0, (4, 3)))
            axes.annotate(
                f"{100 * point.change:+.0f} %", (point.index - 0.4, 0.04),
                xycoords=("data", "axes fraction"), color=INK, fontsize=9,
            )  # fmt: skip
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, axis="y")
        axes.spines["bottom"].set_color(GRID)
        step = -(-len(figures) // _MAX_TICKS)
        axes.set_xticks(places[::step], [one.environment.commit[:7] for one in figures[::step]])
        axes.tick_params(axis="x", labelcolor=SOFT)
        axes.set_xlabel("commit, oldest left")
        axes.set_ylabel(series.last.unit)
        values = ", ".join(f"{one.value:.4g}" for one in figures[-_MAX_TICKS:])
        changes = "; ".join(
            f"{100 * point.change:+.1f} % at {figures[point.index].environment.commit[:_COMMIT]}"
            for point in series.changes
        )
        told = (
            f"{title} of {len(figures)} measurements. The newest: {values}. "
            f"Changes of level: {changes or 'none'}."
        )
        return to_svg(made, name, told)
