"""The plot of a policy gradient's steps: how far it moved, and how much of it was clipped.

Not here: the other plots (plots.py), what the numbers are (qlora/policy.py).
"""

from collections.abc import Sequence
from typing import Final

from mmar_jobs.report.plots import WIDTH
from mmar_jobs.report.run_view import Iteration
from mmar_jobs.report.svg import AFTER, GRID, figure, to_svg

_ROWS: Final = (("kl_old", "divergence,\nnats a token"), ("clip_fraction", "clipped\ntokens"))


def policy(iterations: Sequence[Iteration]) -> str:
    """Divergence from the old policy and clipped share of every step, iterations in a row."""
    trained = [(turn.number, turn.step_metrics) for turn in iterations if turn.step_metrics]
    with figure(WIDTH, 3.0, len(_ROWS)) as (made, all_axes):
        for axes, (name, label) in zip(all_axes, _ROWS, strict=True):
            start = 0
            for _, metrics in trained:
                steps = range(start + 1, start + 1 + len(metrics))
                axes.plot(steps, [one[name] for one in metrics], color=AFTER, linewidth=1.4)
                if start:
                    axes.axvline(start + 0.5, color=GRID, linewidth=1.2)
                start += len(metrics)
            axes.set_ylim(bottom=0)
            axes.grid(visible=True, axis="y")
            axes.set_ylabel(label)
        all_axes[1].yaxis.set_major_formatter("{x:.0%}")
        all_axes[1].set_xlabel("optimizer step")
        all_axes[1].locator_params(axis="x", integer=True)
        told = "; ".join(
            f"iteration {number}: {metrics[-1]['kl_old']:.3f} nats a token and "
            f"{metrics[-1]['clip_fraction']:.1%} clipped at the last of {len(metrics)} steps"
            for number, metrics in trained
        )
        return to_svg(made, "policy", f"Policy gradient per optimizer step. {told}.")
