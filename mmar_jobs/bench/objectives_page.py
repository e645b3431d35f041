"""The objectives side by side as one HTML page that needs nothing else.

Not here: the figures (objectives.py).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from markupsafe import Markup

from mmar_jobs.bench.objectives import Standing
from mmar_jobs.report.page import open_templates
from mmar_jobs.report.svg import AFTER, BEFORE, INK, MUTED, SOFT, figure, to_svg

TEMPLATE: Final = "objectives.html.j2"
_ALPHA: Final = 0.05


def render_objectives(found: Sequence[Standing]) -> str:
    """The whole page; equal figures give equal text."""
    here = Path(__file__).parent
    return (
        open_templates(here, here.parent / "report", here.parent / "analysis")
        .get_template(TEMPLATE)
        .render(
            found=found,
            winner=winner(found),
            num_seeds=len(found[0].accuracies),
            plot=Markup(_plot(found)),  # noqa: S704 - matplotlib escapes
        )
    )


def winner(found: Sequence[Standing]) -> str:
    """Which objective is best, in one sentence that claims no more than the test does."""
    plain, *others = found
    best = max(others, key=lambda one: one.accuracy)
    gain = 100 * (best.accuracy - plain.accuracy)
    # Two objectives are compared with the plain one: Bonferroni.
    if best.p_value * len(others) >= _ALPHA:
        return f"No objective is shown to differ from {plain.objective}"
    if gain > 0:
        return f"{best.objective} is better than {plain.objective}, by {gain:.1f} points"
    return f"{plain.objective} is better than the others, by {-gain:.1f} points or more"


def _plot(found: Sequence[Standing]) -> str:
    """Accuracy of every seed, mean and interval of each objective; muted; before; chance."""
    with figure(6.4, 3.6) as (made, (axes,)):
        for place, one in enumerate(found):
            axes.plot([place] * len(one.before), _percent(one.before), "o", color=BEFORE, alpha=0.5)
            axes.plot([place + 0.12] * len(one.muted), _percent(one.muted), "D", color=MUTED)
            axes.plot([place + 0.24] * 2, _percent(one.interval), color=AFTER, linewidth=2.2)
            axes.plot(
                [place + 0.12] * len(one.accuracies), _percent(one.accuracies), ".", color=AFTER
            )
            axes.plot(place + 0.24, 100 * one.accuracy, "o", color=AFTER, markersize=8)
            axes.annotate(
                f"{100 * one.accuracy:.1f}",
                (place + 0.24, 100 * one.accuracy),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                color=INK,
            )
        axes.axhline(100 * found[0].chance, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xlim(-0.4, len(found) - 0.2)
        axes.set_xticks([place + 0.12 for place in range(len(found))], [o.objective for o in found])
        axes.yaxis.set_major_formatter("{x:.0f}%")
        axes.grid(visible=True, axis="y")
        axes.set_ylabel("right answers, held-out")
        told = "; ".join(
            f"{one.objective} {one.accuracy:.1%}, muted {sum(one.muted) / len(one.muted):.1%}"
            for one in found
        )
        return to_svg(made, "objectives", f"Held-out accuracy by objective. {told}.")


def _percent(shares: Sequence[float]) -> list[float]:
    return [100 * share for share in shares]
