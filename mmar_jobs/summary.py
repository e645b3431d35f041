"""The end table of a run: one row per iteration, read off the artifacts.

Not here: the HTML report (report/).
"""

from rich.table import Table

from mmar_jobs.artifact import Artifact, find_artifact, require_artifact
from mmar_jobs.layout import adapter_key, candidates_key, examples_key, verdict_key
from mmar_jobs.lineage import VERDICT
from mmar_jobs.store import Store
from mmar_jobs.verdict import Verdict

_COLUMNS = (
    ("iteration", "right"),
    ("candidates", "right"),
    ("valid", "right"),
    ("learning zone", "right"),
    ("examples", "right"),
    ("loss", "right"),
    ("parent", "right"),
    ("child", "right"),
    ("p", "right"),
    ("muted / chance", "right"),
    ("verdict", "left"),
)


def table(store: Store, run_id: str) -> Table:
    """The iterations of a run with what each stage counted and measured."""
    made = Table(
        title=f"run {run_id}", caption="accuracy on held-out questions, same for both models"
    )
    for name, justify in _COLUMNS:
        made.add_column(name, justify=justify)  # type: ignore[arg-type]
    iteration = 1
    while (verdict := find_artifact(store, verdict_key(run_id, iteration))) is not None:
        made.add_row(*_row(store, run_id, iteration, verdict))
        iteration += 1
    return made


def _row(store: Store, run_id: str, iteration: int, artifact: Artifact) -> list[str]:
    candidates = require_artifact(store, candidates_key(run_id, iteration), stage="generate")
    examples = require_artifact(store, examples_key(run_id, iteration), stage="filter")
    adapter = require_artifact(store, adapter_key(run_id, iteration), stage="train")
    counts = examples.manifest.counts
    loss = adapter.manifest.metrics
    verdict = Verdict.model_validate(artifact.read_json(VERDICT)["verdict"])
    muted = "-" if verdict.muted_accuracy is None else f"{verdict.muted_accuracy:.1%}"
    return [
        str(iteration),
        f"{candidates.manifest.counts['num_candidates']:,}",
        f"{examples.manifest.metrics['valid_rate']:.1%}",
        f"{counts['num_learning_zone']} of {counts['num_questions']}",
        f"{counts['num_examples']:,}",
        f"{loss['first_loss']:.3f} → {loss['last_loss']:.3f}",
        f"{verdict.parent_accuracy:.1%}",
        f"{verdict.child_accuracy:.1%}",
        f"{verdict.p_value:.2g}",
        f"{muted} / {verdict.chance:.1%}",
        verdict.decision.value,
    ]
