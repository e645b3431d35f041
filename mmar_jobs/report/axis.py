"""Rows, percent axes and legends that several plots share.

Not here: the plots (plots.py), colours and fonts (svg.py).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from mmar_jobs.report.svg import PAPER

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_NAME: Final = 30


class Mark(NamedTuple):
    """One entry of a legend of points."""

    name: str
    color: str
    shape: str = "o"
    is_filled: bool = True


def name_rows(axes: "Axes", names: Sequence[str]) -> None:
    """Write one name beside each row, the first one on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.45, -0.55)


def percent_axis(axes: "Axes", which: str) -> None:
    """Label the axis called `which`, x or y, in per cent and draw its grid."""
    is_y = which == "y"
    (axes.yaxis if is_y else axes.xaxis).set_major_formatter("{x:.0f}%")
    axes.grid(visible=True, axis="y" if is_y else "x")


def color_legend(axes: "Axes", colors: Mapping[str, str]) -> None:
    """One line of coloured squares above the plot."""
    from matplotlib.patches import Patch  # noqa: PLC0415 - see svg.figure

    axes.figure.legend(
        [Patch(color=color) for color in colors.values()],
        list(colors),
        loc="outside upper left",
        ncols=len(colors),
        fontsize=8.6,
        handlelength=0.8,
        handleheight=0.8,
        handletextpad=0.35,
        columnspacing=0.75,
        borderpad=0,
    )


def mark_legend(axes: "Axes", marks: Sequence[Mark]) -> None:
    """One line of points above the plot."""
    from matplotlib.lines import Line2D  # noqa: PLC0415 - see svg.figure

    axes.figure.legend(
        [
            Line2D(
                [],
                [],
                color=mark.color,
                marker=mark.shape,
                markerfacecolor=mark.color if mark.is_filled else PAPER,
                linestyle="",
            )
            for mark in marks
        ],
        [mark.name for mark in marks],
        loc="outside upper left",
        ncols=len(marks),
        fontsize=8.8,
        handletextpad=0,
        columnspacing=0.8,
        borderpad=0,
    )


def short_name(name: str) -> str:
    """A name that fits beside a plot: printable, at most 30 characters."""
    printable = "".join(letter if letter.isprintable() else " " for letter in name)
    return printable if len(printable) <= _MAX_NAME else f"{printable[: _MAX_NAME - 1]}…"
