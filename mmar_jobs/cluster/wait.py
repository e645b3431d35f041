"""Wait for a run's workflow, and say how it ended and what its pods gave out; Argo decides nothing.

Not here: starting it (submit.py).
"""

import time
from dataclasses import dataclass
from typing import Final

from mmar_jobs.cluster.api import Cluster, Object
from mmar_jobs.cluster.jobs import RUN_LABEL
from mmar_jobs.cluster.run_job import by_age
from mmar_jobs.cluster.submit import ENDED
from mmar_jobs.errors import DataError, ExitCode, TryAgain

_LOOK_S: Final = 5.0


@dataclass(frozen=True)
class WorkflowEnding:
    """How it ended, in the words of the pod that ended it, and the outputs of all pods by name."""

    code: ExitCode
    sentence: str
    outputs: dict[str, str]


def wait_for_workflow(
    cluster: Cluster, run_id: str, *, deadline_s: float, look_s: float = _LOOK_S
) -> WorkflowEnding:
    """The newest workflow of the run, once it has ended; TryAgain when that takes too long."""
    end = time.monotonic() + deadline_s
    while True:
        found = by_age(cluster.list("Workflow", labels=f"{RUN_LABEL}={run_id}"))
        if not found:
            raise DataError(f"this namespace has no workflow of {run_id}: mmar-jobs cluster submit")
        name, status = found[-1]["metadata"]["name"], found[-1].get("status", {})
        if status.get("phase") in ENDED:
            return _ending_of(name, status)
        if time.monotonic() + look_s > end:
            raise TryAgain(f"workflow {name} has not ended after {deadline_s:.0f} s; it goes on")
        time.sleep(look_s)


def _ending_of(name: str, status: Object) -> WorkflowEnding:
    """Of retried pods the last tries count; of failures the last, since others went on.

    What the exit handler could not do then, as a report of nothing, is not why it ended.
    """
    nodes: list[Object] = [n for n in status.get("nodes", {}).values() if n.get("type") == "Pod"]
    nodes.sort(key=lambda node: str(node.get("finishedAt") or ""))
    outputs = {
        parameter["name"]: parameter["value"]
        for node in nodes
        for parameter in node.get("outputs", {}).get("parameters", [])
        if parameter.get("value")
    }
    if status["phase"] == "Succeeded":
        return WorkflowEnding(ExitCode.DONE, "succeeded", outputs)
    failed = [node for node in nodes if node.get("phase") in ENDED[1:]]
    own = [node for node in failed if not str(node.get("name")).startswith(f"{name}.onExit")]
    said = (own or failed or [status])[-1]
    sentence = str(said.get("message") or status.get("message") or status["phase"].lower())
    return WorkflowEnding(_code_of(said), " ".join(sentence.split()), outputs)


def _code_of(node: Object) -> ExitCode:
    """The exit code of the pod; without one, or with a foreign one, it was lost: try again."""
    try:
        return ExitCode(int(node.get("outputs", {}).get("exitCode", "")))
    except ValueError:
        return ExitCode.TRY_AGAIN
