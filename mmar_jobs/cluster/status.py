"""A run as the cluster shows it: a line a stage, and what its GPUs have cost so far.

Not here: what the stages found, which their artifacts tell (`mmar-jobs report`), and printing.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from mmar_jobs.cluster.api import Cluster, NotFound, Object, Refused
from mmar_jobs.cluster.diagnosis import ending_of, trouble_of
from mmar_jobs.cluster.jobs import (
    CONTAINER,
    ITERATION_LABEL,
    RUN_LABEL,
    STAGE_LABEL,
    condition,
    num_gpus,
)
from mmar_jobs.cluster.lease import HOLDER, LEASE
from mmar_jobs.cluster.pod_logs import has_log
from mmar_jobs.cluster.run_job import by_age
from mmar_jobs.cluster.stage_lines import summary_of
from mmar_jobs.errors import TryAgain

_TAIL: Final = {"container": CONTAINER, "tailLines": "100"}


@dataclass(frozen=True)
class Row:
    """One stage's Job, or a server."""

    what: str
    state: str
    num_pods: int
    began: datetime | None
    took: timedelta | None
    num_gpus: int
    says: str

    @property
    def gpu_hours(self) -> float:
        """GPUs times the time for which its pods held them."""
        return self.num_gpus * (self.took.total_seconds() / 3600 if self.took else 0.0)


def rows_of(cluster: Cluster, run_id: str) -> list[Row]:
    """Stages in the order in which they began, then the servers that the run holds."""
    selector = f"{RUN_LABEL}={run_id}"
    jobs = by_age(cluster.list("Job", labels=selector))
    pods = defaultdict(list)
    for pod in by_age(cluster.list("Pod", labels=selector)):
        pods[pod["metadata"]["labels"].get("batch.kubernetes.io/job-name")].append(pod)
    events = cluster.list("Event", fields="type=Warning")
    now = cluster.now()
    rows = []
    for job in jobs:
        own = pods[job["metadata"]["name"]]
        row = job_row(job, own, events, now)
        rows.append(row if row.says else replace(row, says=_last_words(cluster, own)))
    servers = cluster.list("StatefulSet")
    held = [each for each in servers if _notes(each).get(HOLDER) == run_id]
    return rows + [_server_row(cluster, server, now) for server in held]


def _last_words(cluster: Cluster, pods: Sequence[Object]) -> str:
    """How far and how fast its newest pod is or was, which stays unsaid where the log is gone."""
    spoke = [pod["metadata"]["name"] for pod in pods if has_log(pod)]
    if not spoke:
        return ""
    with suppress(NotFound, Refused, TryAgain):
        return summary_of(cluster.log_lines(spoke[-1], _TAIL))
    return ""


def job_row(job: Object, pods: Sequence[Object], events: Sequence[Object], now: datetime) -> Row:
    """What is to be said of one stage."""
    labels = job["metadata"]["labels"]
    turn = labels.get(ITERATION_LABEL)
    state, says, end = _state(job, pods, events)
    # Pods that have waited have cost nothing; those that are gone are counted by their Job's time.
    began = [pod["status"].get("startTime") for pod in pods]
    began_at = _time(next((time for time in began if time), job["status"].get("startTime")))
    took = None if began_at is None or state == "waiting" else (_time(end) or now) - began_at
    return Row(
        labels[STAGE_LABEL] + (f" {turn}" if turn else ""),
        state,
        len(pods),
        began_at,
        took,
        num_gpus(job["spec"]["template"]["spec"]),
        says,
    )


def _state(
    job: Object, pods: Sequence[Object], events: Sequence[Object]
) -> tuple[str, str, str | None]:
    if (complete := condition(job, "Complete")) is not None:
        return "done", "", complete["lastTransitionTime"]
    if (failed := condition(job, "Failed")) is not None:
        ending = ending_of(job, pods)
        return f"failed ({int(ending.code)})", ending.sentence, failed["lastTransitionTime"]
    if any(pod["status"].get("phase") == "Running" for pod in pods):
        return "running", "", None
    trouble = trouble_of(job, pods, events)
    return "waiting", "" if trouble is None else trouble.sentence, None


def _server_row(cluster: Cluster, server: Object, now: datetime) -> Row:
    labels = ",".join(f"{k}={v}" for k, v in server["spec"]["selector"]["matchLabels"].items())
    pods = by_age(cluster.list("Pod", labels=labels))
    began = _time(pods[0]["status"].get("startTime")) if pods else None
    ready = server["status"].get("readyReplicas", 0)
    return Row(
        f"server {server['metadata']['name']}",
        f"{ready}/{server['spec'].get('replicas', 0)} ready",
        len(pods),
        began,
        None if began is None else now - began,
        len(pods) * num_gpus(server["spec"]["template"]["spec"]),
        f"until {_notes(server).get(LEASE, '?')}",
    )


def _notes(thing: Mapping[str, Any]) -> Mapping[str, str]:
    return thing["metadata"].get("annotations") or {}


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
