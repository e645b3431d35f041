"""Jobs and pods as Kubernetes would show them."""

import json
from typing import Any

from mmar_jobs.cluster.jobs import StageWork, job_of

Object = dict[str, Any]
WORK = StageWork("filter", "run", 2)


def template(stage: str = "filter") -> Object:
    """A Job's manifest, as little of it as matters."""
    container = {
        "name": "stage",
        "image": "mmar-jobs/cpu",
        "resources": {"limits": {"memory": "1Gi"}},
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": stage, "labels": {"mmar-jobs/stage": stage}},
        "spec": {"template": {"spec": {"containers": [container]}}},
    }


def manifest(*flags: str) -> Object:
    """What run-job applies for WORK."""
    return job_of(template(), WORK, image=None, flags=flags)


def with_condition(job: Object, kind: str, **more: str) -> Object:
    """The Job with a condition that is true."""
    return job | {"status": {"conditions": [{"type": kind, "status": "True", **more}]}}


def pod(
    phase: str = "Running", *, name: str = "p", state: Object | None = None, **status: Any
) -> Object:
    """A pod of WORK's Job; `state` of its container."""
    states = {"Running": {"running": {}}}.get(phase, {})
    container = {"name": "stage", "image": "mmar-jobs/cpu", "state": state or states}
    return {
        "metadata": {
            "name": name,
            "namespace": "ns",
            "labels": {"batch.kubernetes.io/job-name": WORK.name},
        },
        "spec": template()["spec"]["template"]["spec"],
        "status": {"phase": phase, "containerStatuses": [container], **status},
    }


def ended(
    code: int, *, name: str = "p", reason: str = "", message: str = "", **status: Any
) -> Object:
    """A pod whose stage ended with `code`."""
    state = {"terminated": {"exitCode": code, "reason": reason, "message": message}}
    return pod("Failed" if code else "Succeeded", name=name, state=state, **status)


def succeeded(**outcome: Any) -> Object:
    """A pod whose stage told its outcome."""
    return ended(0, message=json.dumps(outcome))


def waiting(reason: str, message: str = "") -> Object:
    """A pod whose container cannot begin."""
    return pod("Pending", state={"waiting": {"reason": reason, "message": message}})


def warning(reason: str, message: str, about: str = "p") -> Object:
    """An event."""
    return {
        "metadata": {"name": f"{about}.{reason}"},
        "involvedObject": {"name": about},
        "reason": reason,
        "message": message,
        "type": "Warning",
    }
