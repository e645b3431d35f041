"""Turn a matplotlib figure into an inline SVG that follows the page's colours.

Not here: what is drawn (plots.py). Colours are the light theme's; in the SVG each becomes a CSS
variable, so a plot changes with the page between light and dark and needs no second copy.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK: Final = "#1c2326"
SOFT: Final = "#5d686c"
GRID: Final = "#dfe4e3"
PAPER: Final = "#fefefe"
AFTER: Final = "#0b6e66"
BEFORE: Final = "#7c878b"
MUTED: Final = "#b3701a"
# Brown to teal (ColorBrewer BrBG), told apart by all common kinds of colour blindness.
ZONE_COLORS: Final = {
    "undecided": "#b9bfc1",
    "unsolved": "#8c510a",
    "hard": "#d8b365",
    "medium": "#c7e6e1",
    "easy": "#5ab4ac",
    "mastered": "#01665e",
}
STAGE_COLORS: Final = {
    "ingest": "#b9bfc1",
    "generate": "#5ab4ac",
    "filter": "#c7e6e1",
    "train": "#d8b365",
    "evaluate": "#8fa3ad",
    "infer": "#01665e",
}
_VARIABLES: Final = {
    INK: "--ink",
    SOFT: "--soft",
    GRID: "--grid",
    PAPER: "--card",
    AFTER: "--after",
    BEFORE: "--before",
    MUTED: "--muted",
}
_SETTINGS: Final = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    # A category called "$x" is a name, not a formula.
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": SOFT,
    "axes.facecolor": "none",
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.labelcolor": SOFT,
    "legend.fontsize": 9.5,
    "figure.facecolor": "none",
    "lines.solid_capstyle": "round",
}


@contextmanager
def figure(
    width: float, height: float, num_rows: int = 1
) -> Iterator[tuple["Figure", list["Axes"]]]:
    """An empty figure of `width` x `height` inches in the page's style, with its axes."""
    from matplotlib import rc_context  # noqa: PLC0415 - 0.4 s that only a report pays
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: PLC0415 - the same
    from matplotlib.figure import Figure as NewFigure  # noqa: PLC0415 - the same

    settings: Any = _SETTINGS
    with rc_context(settings):
        made = NewFigure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(made)
        axes = made.subplots(num_rows, 1, sharex=True, squeeze=False)
        yield made, list(axes[:, 0])


def to_svg(made: "Figure", name: str, description: str) -> str:
    """The figure as an `<svg>` element with `description` as its text alternative.

    Equal figures give equal bytes. `name` keeps ids of several plots on one page apart.
    """
    from matplotlib import rc_context  # noqa: PLC0415 - see figure

    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        # Text stays text and the reader's fonts draw it; what our own font lacks does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        made.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), name, description)


def _inline(document: str, name: str, description: str) -> str:
    """Cut the document down to what HTML needs, with ids and colours of the page."""
    body = document[document.index("<svg") :]
    for noise in (r"<metadata>.*?</metadata>", r"<!--.*?-->", r' xmlns(:\w+)?="[^"]*"'):
        body = re.sub(noise, "", body, flags=re.DOTALL)
    body = body.replace("xlink:href", "href")
    body = re.sub(
        r'(<svg)[^>]*?(viewBox="[^"]*")[^>]*>', rf"\1 \2 {_label(description)}>", body, count=1
    )
    body = re.sub(
        r'(?<= )id="((?:figure|axes|patch|text|line2d|xtick|ytick|matplotlib)[^"]*)"', "", body
    )
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", body)
    for color, variable in _VARIABLES.items():
        body = re.sub(rf"{color}(?=[;\"])", f"var({variable})", body)
    return re.sub(r"\n\s*", "\n", body).strip()


def _label(description: str) -> str:
    # A function of its own: backslashes in a description must not reach the regex replacement.
    return f'role="img" aria-label="{escape(description, quote=True)}"'.replace("\\", "\\\\")
