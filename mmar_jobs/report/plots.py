"""The plots of the report, each a function from findings to an inline SVG.

Not here: colours, fonts and the way into HTML (svg.py), reading artifacts (run_view.py).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from mmar_jobs.report.axis import (
    Mark,
    color_legend,
    mark_legend,
    name_rows,
    percent_axis,
    short_name,
)
from mmar_jobs.report.findings import CategoryRow
from mmar_jobs.report.run_view import Iteration
from mmar_jobs.report.svg import (
    AFTER,
    BEFORE,
    GRID,
    INK,
    MUTED,
    PAPER,
    SOFT,
    STAGE_COLORS,
    ZONE_COLORS,
    figure,
    to_svg,
)
from mmar_jobs.report.words import duration, p_text, points
from mmar_jobs.verdict import Decision, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH: Final = 4.8
_ACCURACY_MARKS: Final = (
    Mark("parent", BEFORE),
    Mark("child, promoted", AFTER),
    Mark("child, refused", AFTER, is_filled=False),
    Mark("child, muted", MUTED, "D"),
)
_DARK_FILLS: Final = ("unsolved", "mastered")
_MAX_ROOMY: Final = 3
_MIN_LABELLED: Final = 0.07
_NUM_BINS: Final = 48


def accuracy(iterations: Sequence[Iteration]) -> str:
    """Held-out accuracy of parents and children with 95 % intervals; muted children; chance."""
    judged = [(turn.number, turn.verdict) for turn in iterations if turn.verdict]
    is_roomy = len(judged) <= _MAX_ROOMY
    with figure(WIDTH, 3.3) as (made, (axes,)):
        for number, verdict in judged:
            parent, child = 100 * verdict.parent_accuracy, 100 * verdict.child_accuracy
            left, right = number - 0.13, number + 0.13
            axes.plot([left, right], [parent, child], color=GRID, linewidth=1.4, zorder=1)
            fill = AFTER if verdict.decision is Decision.PROMOTE else PAPER
            _point(axes, left, parent, verdict.parent_ci95, (BEFORE, BEFORE))
            _point(axes, right, child, verdict.child_ci95, (AFTER, fill))
            if is_roomy:
                _value(axes, left, parent, BEFORE)
                _value(axes, right, child, AFTER)
            if verdict.muted_accuracy is not None:
                axes.plot(right, 100 * verdict.muted_accuracy, "D", color=MUTED, markersize=5.5)
        chance = 100 * judged[0][1].chance
        axes.axhline(chance, color=SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        axes.set_xlim(0.4, len(judged) + 0.6)
        word = "iteration " if is_roomy else ""
        axes.set_xticks([n for n, _ in judged], [f"{word}{n}" for n, _ in judged])
        axes.annotate(
            f"chance {chance:.0f}%",
            (len(judged) + 0.6, chance),
            xytext=(0, -3),
            textcoords="offset points",
            ha="right",
            va="top",
            color=SOFT,
            fontsize=9,
        )
        _accuracy_axis(axes, judged)
        axes.set_ylabel("right answers")
        mark_legend(axes, _ACCURACY_MARKS)
        told = "; ".join(
            f"iteration {number}: parent {verdict.parent_accuracy:.1%}, child "
            f"{verdict.child_accuracy:.1%}, {verdict.decision.value.replace('_', ' ')}"
            for number, verdict in judged
        )
        return to_svg(made, "accuracy", f"Held-out accuracy per iteration. {told}.")


def _point(
    axes: "Axes", x: float, value: float, interval: tuple[float, float], colors: tuple[str, str]
) -> None:
    """A point, per cent, with its interval, a fraction; `colors` of line and filling."""
    color, fill = colors
    axes.plot([x, x], [100 * end for end in interval], color=color, linewidth=2.2, zorder=2)
    axes.plot(x, value, "o", color=color, markerfacecolor=fill, markersize=8, zorder=3)


def _value(axes: "Axes", x: float, value: float, color: str) -> None:
    """The number beside a point: the parent's on its left, the child's on its right."""
    is_child = color == AFTER
    axes.annotate(
        f"{value:.1f}",
        (x, value),
        xytext=(8 if is_child else -8, 0),
        textcoords="offset points",
        ha="left" if is_child else "right",
        va="center",
        color=INK if is_child else SOFT,
        fontsize=9.5,
        fontweight="bold" if is_child else "normal",
        bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1},
    )


def _accuracy_axis(axes: "Axes", judged: Sequence[tuple[int, Verdict]]) -> None:
    ends = [
        end
        for _, verdict in judged
        for end in (
            *verdict.parent_ci95,
            *verdict.child_ci95,
            verdict.muted_accuracy,
            verdict.chance,
        )
        if end is not None
    ]
    axes.set_ylim(max(0, 100 * min(ends) - 6), min(100, 100 * max(ends) + 6))
    percent_axis(axes, "y")


def zones(iterations: Sequence[Iteration]) -> str:
    """Share of the asked questions in each learning zone, one bar per iteration."""
    counted = [
        (turn.number, turn.examples.manifest.metrics["zones"])
        for turn in iterations
        if turn.examples
    ]
    with figure(WIDTH, 0.9 + 0.46 * len(counted)) as (made, (axes,)):
        for row, (_, counts) in enumerate(counted):
            total = max(1, sum(counts.values()))
            left = 0.0
            for zone, color in ZONE_COLORS.items():
                share = counts.get(zone, 0) / total
                axes.barh(row, share, left=left, color=color, height=0.66, edgecolor=PAPER)
                if share >= _MIN_LABELLED:
                    ink = "#ffffff" if zone in _DARK_FILLS else "#10201e"
                    axes.text(
                        left + share / 2,
                        row,
                        f"{share:.0%}",
                        ha="center",
                        va="center",
                        color=ink,
                        fontsize=9.5,
                    )
                left += share
        name_rows(axes, [f"iteration {number}" for number, _ in counted])
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter("{x:.0%}")
        axes.set_xlabel("share of the questions asked")
        color_legend(axes, ZONE_COLORS)
        told = "; ".join(
            f"iteration {number}: "
            + ", ".join(f"{zone} {counts.get(zone, 0)}" for zone in ZONE_COLORS)
            for number, counts in counted
        )
        return to_svg(made, "zones", f"Questions by learning zone. {told}.")


def token_lengths(iterations: Sequence[Iteration]) -> str:
    """Distribution of the candidates' lengths, one ridge per iteration, medians marked."""
    counted = [(turn.number, turn.num_tokens) for turn in iterations if turn.num_tokens]
    longest = max(max(counts) for _, counts in counted)
    width = max(1, -(-(longest + 1) // _NUM_BINS))
    edges = list(range(0, longest + 1 + width, width))
    with figure(WIDTH, 0.6 + 0.62 * len(counted), len(counted)) as (made, all_axes):
        for axes, (number, counts) in zip(all_axes, counted, strict=True):
            shares = _binned(counts, edges)
            axes.stairs(shares, edges, fill=True, color="#5ab4ac", alpha=0.75)
            middle = _quantile(counts, 0.5)
            axes.axvline(middle, color=AFTER, linewidth=1.6)
            axes.set_ylim(0, 1.15 * max(shares))
            axes.annotate(
                f"median {middle}\n90 %: {_quantile(counts, 0.05)} to {_quantile(counts, 0.95)}",
                (1.02, 0.5),
                xycoords="axes fraction",
                va="center",
                color=SOFT,
                fontsize=9,
                annotation_clip=False,
            )
            axes.set_yticks([])
            axes.set_ylabel(f"iteration {number}", rotation=0, ha="right", va="center")
        all_axes[-1].set_xlim(0, edges[-1])
        all_axes[-1].set_xlabel("completion length, tokens; height: share of candidates")
        told = "; ".join(
            f"iteration {number}: median {_quantile(counts, 0.5)}, 5 % to 95 % "
            f"{_quantile(counts, 0.05)} to {_quantile(counts, 0.95)}"
            for number, counts in counted
        )
        return to_svg(made, "tokens", f"Completion lengths in tokens. {told}.")


def _binned(counts: Mapping[int, int], edges: Sequence[int]) -> list[float]:
    width = edges[1] - edges[0]
    binned = [0.0] * (len(edges) - 1)
    for length, count in counts.items():
        binned[length // width] += count / sum(counts.values())
    return binned


def _quantile(counts: Mapping[int, int], level: float) -> int:
    """The smallest length that at least `level` of the completions do not exceed."""
    wanted = level * sum(counts.values())
    passed = 0
    for length in sorted(counts):
        passed += counts[length]
        if passed >= wanted:
            return length
    raise AssertionError("no completions")


def losses(iterations: Sequence[Iteration]) -> str:
    """Training loss of every optimizer step, iterations one after the other, with running means."""
    trained = [(turn.number, turn.losses) for turn in iterations if turn.losses]
    with figure(WIDTH, 3.0) as (made, (axes,)):
        start = 0
        for number, values in trained:
            steps = range(start + 1, start + 1 + len(values))
            axes.plot(
                steps, values, color="#5ab4ac", linewidth=0.9, alpha=0.75, marker=_dot(values)
            )
            axes.plot(steps, _running_mean(values), color=AFTER, linewidth=2.2)
            if start:
                axes.axvline(start + 0.5, color=GRID, linewidth=1.2)
            axes.annotate(
                f"iteration {number}",
                (start + 0.5, 1),
                xycoords=("data", "axes fraction"),
                xytext=(5, 2),
                textcoords="offset points",
                va="bottom",
                color=SOFT,
                fontsize=9.5,
            )
            start += len(values)
        axes.set_xlim(0.5, start + 0.5)
        axes.grid(visible=True, axis="y")
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("loss, nats per token")
        axes.locator_params(axis="x", integer=True)
        told = "; ".join(
            f"iteration {number}: {values[0]:.3f} at the first of {len(values)} steps, "
            f"{values[-1]:.3f} at the last"
            for number, values in trained
        )
        return to_svg(made, "losses", f"Training loss per optimizer step. {told}.")


def _dot(values: Sequence[float]) -> str:
    return "." if len(values) == 1 else ""


def _running_mean(values: Sequence[float]) -> list[float]:
    """Mean of each value and its neighbours within a tenth of the run."""
    reach = max(1, len(values) // 20)
    windows = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def categories(rows: Sequence[CategoryRow], after_name: str) -> str:
    """Two models per category as dumbbells, with the adjusted p-value beside each."""
    with figure(WIDTH, 0.9 + 0.44 * len(rows)) as (made, (axes,)):
        for row, found in enumerate(rows):
            ends = [100 * found.before, 100 * found.after]
            axes.plot(ends, [row, row], color=GRID, linewidth=4, zorder=1)
            axes.plot(ends[0], row, "o", color=BEFORE, markersize=8, zorder=2)
            axes.plot(ends[1], row, "o", color=AFTER, markersize=9, zorder=3)
            axes.annotate(
                points(found.after - found.before),
                (1.02, row),
                xycoords=("axes fraction", "data"),
                va="center",
                color=INK,
                fontsize=9.5,
                annotation_clip=False,
            )
        values = [100 * value for found in rows for value in (found.before, found.after)]
        axes.set_xlim(max(0, min(values) - 8), min(100, max(values) + 8))
        name_rows(axes, [f"{short_name(found.category)} ({found.n})" for found in rows])
        percent_axis(axes, "x")
        axes.grid(visible=True, axis="x")
        axes.set_xlabel("right answers")
        mark_legend(axes, [Mark("base", BEFORE), Mark(after_name, AFTER)])
        told = "; ".join(
            f"{found.category} ({found.n} questions): {found.before:.1%} to {found.after:.1%}, "
            f"Holm-adjusted {p_text(found.p_value_holm)}"
            for found in rows
        )
        return to_svg(made, "categories", f"Accuracy per category, base and {after_name}. {told}.")


def stage_times(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Seconds by stage, one stacked bar per part of the run."""
    with figure(WIDTH, 0.9 + 0.46 * len(rows)) as (made, (axes,)):
        for row, seconds in enumerate(rows.values()):
            left = 0.0
            for stage, value in seconds.items():
                axes.barh(
                    row, value, left=left, color=STAGE_COLORS[stage], height=0.66, edgecolor=PAPER
                )
                left += value
            axes.annotate(
                duration(left),
                (left, row),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                color=INK,
                fontsize=9.5,
            )
        name_rows(axes, list(rows))
        longest = max(sum(seconds.values()) for seconds in rows.values())
        axes.set_xlim(0, 1.22 * longest or 1)
        axes.xaxis.set_major_formatter(lambda value, _: duration(value))
        axes.locator_params(axis="x", nbins=3)
        axes.set_xlabel("wall time")
        color_legend(axes, STAGE_COLORS)
        told = "; ".join(
            f"{name}: " + ", ".join(f"{stage} {value:.1f} s" for stage, value in seconds.items())
            for name, seconds in rows.items()
        )
        return to_svg(made, "times", f"Time per stage. {told}.")
