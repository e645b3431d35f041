"""The bench of what a cluster takes before a pod's first instruction: schedule, pull, start.

Not here: what a command pays after that (cold_start.py).
"""

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from mmar_jobs.bench.result import Environment, Measurement
from mmar_jobs.cluster.api import Cluster, Object
from mmar_jobs.cluster.jobs import condition
from mmar_jobs.errors import TryAgain

_LOOK_S: Final = 0.05  # a start takes a second and more


@dataclass(frozen=True, slots=True)
class PodStartBench:
    """Which image, on which kind of nodes (the API tells only administrators), how often.

    A pod that is not ready after `deadline_s` seconds is given up.
    """

    image: str
    nodes: str
    repeats: int
    deadline_s: float = 600.0


def run_pod_start_bench(
    bench: PodStartBench, cluster: Cluster, environment: Environment
) -> Iterator[Measurement]:
    """Seconds from asking for a pod until it is ready, after one for which the image is pulled.

    By this process's clock: the API's own times are whole seconds.
    """
    _start(cluster, bench)
    values = tuple(_start(cluster, bench) for _ in range(bench.repeats))
    there = replace(environment, device=f"nodes {bench.nodes}", driver="none")
    yield Measurement("pod_start/ready_s", "s", "lower", values, {}, there)


def _start(cluster: Cluster, bench: PodStartBench) -> float:
    """One pod, deleted again; TryAgain where it does not get ready."""
    name = f"mmar-jobs-pod-start-{uuid.uuid4().hex[:8]}"
    began = time.monotonic()
    cluster.create("Pod", _pod(name, bench))
    try:
        while condition(cluster.get("Pod", name), "Ready") is None:
            if time.monotonic() - began > bench.deadline_s:
                raise TryAgain(
                    f"pod {name} did not get ready within {bench.deadline_s:.0f} s: "
                    f"is {bench.image} there?"
                )
            time.sleep(_LOOK_S)
        return time.monotonic() - began
    finally:
        cluster.delete("Pod", name)


def _pod(name: str, bench: PodStartBench) -> Object:
    """A pod that only waits, under the restricted standard."""
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {
        "name": "wait",
        "image": bench.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sleep", str(int(bench.deadline_s))],
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "64Mi"}},
        "securityContext": security | {"readOnlyRootFilesystem": True},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "mmar-jobs"}},
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": int(bench.deadline_s)
            + 60,  # should nobody be left to delete it
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
        },
    }
