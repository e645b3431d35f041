"""The end table of a run: a row per iteration and the whole run in a line, read off artifacts.

Not here: the HTML report (report/).
"""

from typing import Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from mmar_jobs.artifact import Artifact, require_artifact
from mmar_jobs.layout import adapter_key, candidates_key, examples_key
from mmar_jobs.lineage import all_verdicts, read_verdict
from mmar_jobs.report.findings import Tone, compare, headline
from mmar_jobs.report.run_view import read_run
from mmar_jobs.store import Store

# Short enough that a terminal of 80 columns shows every number whole.
_COLUMNS: Final = (
    "turn",
    "candi-\ndates",
    "valid",
    "learning\nzone",
    "exam-\nples",
    "loss",
    "parent",
    "child",
    "p",
    "muted",
    "verdict",
)
_STYLE_BY_TONE: Final[dict[Tone, str]] = {"good": "bold green", "bad": "bold red", "open": "bold"}


def render_summary(store: Store, run_id: str) -> Group:
    """The iterations of a run with what each counted and measured, and what came of it all."""
    table = Table(title=f"run {run_id}", title_justify="left", padding=(0, 0))
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for iteration, verdict in enumerate(all_verdicts(store, run_id), 1):
        table.add_row(*_row(store, run_id, iteration, verdict))
    run = read_run(store, run_id)
    comparison = compare(run)
    found = headline(run, comparison)
    said = Text.assemble((found.answer, _STYLE_BY_TONE[found.tone]), f": {found.sentence}")
    if comparison is not None:
        seen = comparison.verdict
        low, high = (f"{100 * end:+.1f}" for end in seen.gain_ci95)
        said.append(
            f" Gain {100 * seen.gain:+.1f} points (95 %: {low} to {high}), exact McNemar "
            f"p = {seen.p_value:.1g}."
        )
    return Group(table, said, Text(found.control))


def _row(store: Store, run_id: str, iteration: int, artifact: Artifact) -> list[str]:
    candidates = require_artifact(store, candidates_key(run_id, iteration), stage="generate")
    examples = require_artifact(store, examples_key(run_id, iteration), stage="filter")
    adapter = require_artifact(store, adapter_key(run_id, iteration), stage="train")
    counts, loss = examples.manifest.counts, adapter.manifest.metrics
    verdict = read_verdict(artifact)
    muted = "-" if verdict.muted_accuracy is None else f"{verdict.muted_accuracy:.1%}"
    return [
        str(iteration),
        f"{candidates.manifest.counts['num_candidates']:,}",
        f"{examples.manifest.metrics['valid_rate']:.0%}",
        f"{counts['num_learning_zone']}/{counts['num_questions']}",
        f"{counts['num_examples']:,}",
        f"{loss['first_loss']:.2f}→{loss['last_loss']:.2f}",
        f"{verdict.parent_accuracy:.1%}",
        f"{verdict.child_accuracy:.1%}",
        f"{verdict.p_value:.1g}",
        muted,
        verdict.decision.value,
    ]
