"""What a stage tells whoever started it: a few values for a workflow to decide on.

The full record is the artifact's manifest. Not here: deciding (argo/ does, by these values).
"""

import json
from pathlib import Path
from typing import Any, Final

from mmar_jobs.artifact import Artifact
from mmar_jobs.store.disk import explained
from mmar_jobs.verdict import Decision

Outcome = dict[str, Any]

NOTHING_LEARNED: Final[Outcome] = {"learned": False}


def outcome_of(stage: str, artifact: Artifact | None) -> Outcome:
    """Counts; of evaluate also the decision, of filter that there is something to learn."""
    if artifact is None:
        return {}
    own: Outcome = {}
    if stage == "evaluate":
        own = {"decision": Decision(artifact.manifest.metrics["decision"]).name}
    if stage == "filter":
        own = {"learned": True}
    return own | artifact.manifest.counts


def write_outcome(path: Path, outcome: Outcome) -> None:
    """Write into the file as it is: a pod's termination log is a mount and cannot be replaced."""
    with explained("write", str(path)):
        path.write_text(json.dumps(outcome, sort_keys=True), encoding="utf-8")
