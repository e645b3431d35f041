"""The pictures of a comparison and of an analysis, each an inline SVG with a text alternative.

Not here: colours and fonts (report/svg.py), the pages around them (page.py).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from mmar_jobs.analysis.compare import Finding, GroupChange
from mmar_jobs.analysis.survey import Lengths
from mmar_jobs.report.axis import color_legend, name_rows, percent_axis, short_name
from mmar_jobs.report.svg import AFTER, BEFORE, GRID, INK, MUTED, PAPER, SOFT, figure, to_svg
from mmar_jobs.report.words import points
from mmar_jobs.submission import MAX_THINKING_CHARACTERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH: Final = 5.4
_WIDE: Final = 9.6
_FULL_POINTS: Final = 20.0  # the strongest colour
_FULL_N: Final = 20  # smaller cells change by chance and fade
_FULL_ALPHA: Final = 0.5  # ink on it is readable on light and on dark paper
_FINDING_COLORS: Final = {
    Finding.BETTER: AFTER,
    Finding.WORSE: MUTED,
    Finding.NO_DIFFERENCE: BEFORE,
}


class Cell(NamedTuple):
    """A change as a fraction over n questions."""

    gain: float
    n: int


def changes(rows: Sequence[GroupChange], name: str, title: str) -> str:
    """Change of each group with its interval; measurable ones in colour, hollow without one."""
    with figure(_WIDTH, 1.0 + 0.4 * len(rows)) as (made, (axes,)):
        axes.axvline(0, color=SOFT, linewidth=1)
        for row, found in enumerate(rows):
            color = _FINDING_COLORS[found.finding]
            if found.gain_ci95 is not None:
                ends = [100 * end for end in found.gain_ci95]
                axes.plot(ends, [row, row], color=color, linewidth=2.4, alpha=0.55)
            fill = PAPER if found.gain_ci95 is None else color
            axes.plot(100 * found.gain, row, "o", color=color, markerfacecolor=fill, markersize=7)
            _beside(axes, row, points(found.gain))
        name_rows(axes, [f"{short_name(found.name)} ({found.n})" for found in rows])
        axes.set_xlabel("change in points, 95 % interval")
        axes.grid(visible=True, axis="x")
        told = "; ".join(
            f"{row.name}, {row.n} questions: {points(row.gain)} points, {row.finding}"
            for row in rows
        )
        return to_svg(made, name, f"{title}. {told}.")


def heat_map(
    cells: Sequence[Sequence[Cell | None]],
    axes_names: tuple[str, str],
    names: tuple[Sequence[str], Sequence[str]],
    name: str,
) -> str:
    """Change by two groupings, rows and columns, named on their axes; None where nothing falls."""
    rows, columns = names
    with figure(_WIDE, 1.4 + 0.34 * len(rows)) as (made, (axes,)):
        for y, line in enumerate(cells):
            for x, cell in enumerate(line):
                if cell is not None:
                    _draw_cell(axes, x, y, cell)
        name_rows(axes, [short_name(row) for row in rows])
        axes.set_xticks(
            range(len(columns)), [short_name(c) for c in columns], rotation=24, ha="left"
        )
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylabel(axes_names[0])
        axes.set_xlabel(f"{axes_names[1]}; cells: change in points, (n) questions")
        axes.spines["bottom"].set_visible(False)
        axes.grid(visible=False)
        told = "; ".join(
            f"{rows[y]} and {columns[x]}: {points(cell.gain)} of {cell.n}"
            for y, line in enumerate(cells)
            for x, cell in enumerate(line)
            if cell is not None
        )
        return to_svg(
            made, name, f"Change in points by {axes_names[0]} and {axes_names[1]}. {told}."
        )


def error_rates(rows: Sequence[tuple[str, int, float, tuple[float, float]]], name: str) -> str:
    """Share of wrong answers of each group (name, n, share, interval) as bars."""
    with figure(_WIDTH, 1.0 + 0.4 * len(rows)) as (made, (axes,)):
        for row, (_, _, share, (low, high)) in enumerate(rows):
            axes.barh(row, 100 * share, color=MUTED, height=0.62, alpha=0.8)
            axes.plot([100 * low, 100 * high], [row, row], color=INK, linewidth=1.4)
            _beside(axes, row, f"{share:.0%}")
        name_rows(axes, [f"{short_name(title)} ({n})" for title, n, _, _ in rows])
        axes.set_xlim(0, 100)
        percent_axis(axes, "x")
        axes.grid(visible=True, axis="x")
        axes.set_xlabel("wrong answers, % (95 % interval)")
        told = "; ".join(f"{title}, {n} questions: {share:.1%}" for title, n, share, _ in rows)
        return to_svg(made, name, f"Wrong answers by group. {told}.")


def lengths(found: Lengths) -> str:
    """Lengths of thinking in characters, right and wrong answers stacked in each bin."""
    edges, counts = found.edges, found.bins
    more = f"in the last bar all longer ones, up to {found.longest:,}" if found.is_cut else ""
    with figure(_WIDTH, 3.0) as (made, (axes,)):
        starts = list(edges[:-1])
        widths = [end - start for start, end in pairwise(edges)]
        rights = [right for right, _ in counts]
        axes.bar(starts, rights, widths, align="edge", color=AFTER)
        wrongs = [wrong for _, wrong in counts]
        axes.bar(starts, wrongs, widths, bottom=rights, align="edge", color=MUTED)
        if edges[-1] > MAX_THINKING_CHARACTERS:
            axes.axvline(MAX_THINKING_CHARACTERS, color=SOFT, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.grid(visible=True, axis="y")
        axes.spines["bottom"].set_color(GRID)
        axes.set_xlabel("\n".join(filter(None, ["length of thinking, characters", more])))
        axes.set_ylabel("questions")
        color_legend(axes, {"right": AFTER, "wrong": MUTED})
        total = sum(right + wrong for right, wrong in counts)
        return to_svg(
            made, "lengths",
            f"Lengths of thinking of {total} predictions, up to {edges[-1]} characters, right and "
            f"wrong answers stacked{f'; {more}' if more else ''}.",
        )  # fmt: skip


def _beside(axes: "Axes", row: int, text: str) -> None:
    axes.annotate(
        text,
        (1.02, row),
        xycoords=("axes fraction", "data"),
        va="center",
        color=INK,
        fontsize=9.5,
        annotation_clip=False,
    )


def _draw_cell(axes: "Axes", x: int, y: int, cell: Cell) -> None:
    from matplotlib.patches import Rectangle  # noqa: PLC0415 - see svg.figure

    share = min(1.0, 100 * abs(cell.gain) / _FULL_POINTS) * min(1.0, cell.n / _FULL_N)
    color = AFTER if cell.gain > 0 else MUTED
    place = (x - 0.48, y - 0.46)
    axes.add_patch(Rectangle(place, 0.96, 0.92, color=color, alpha=share * _FULL_ALPHA, lw=0))
    axes.add_patch(Rectangle(place, 0.96, 0.92, fill=False, edgecolor=GRID, lw=0.8))
    told = f"{points(cell.gain)} ({cell.n})"
    axes.text(x, y, told, ha="center", va="center", fontsize=8.2, color=INK)
