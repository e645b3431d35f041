"""Stop servers whose lease is over: the last of three layers that keep GPUs from idling.

Terminating or deleting a workflow skips its exit handler, so somebody must look. Not here: when
(a CronJob of charts/mmar-jobs).
"""

from datetime import datetime
from typing import Any, Final

from mmar_jobs.cluster.api import Cluster, Conflict, Object
from mmar_jobs.cluster.lease import Lease, write

LABEL: Final = "mmar-jobs/reap"


def reap(cluster: Cluster, log: Any) -> list[str]:
    """The servers that were stopped. One without a lease was not brought up by a run: it stays."""
    stopped = []
    for server in cluster.list("StatefulSet", labels=f"{LABEL}=true"):
        now = cluster.now()
        name, lease = server["metadata"]["name"], Lease.of(server)
        if not server["spec"].get("replicas") or lease is None or not lease.is_over(now):
            continue
        version = {"resourceVersion": server["metadata"]["resourceVersion"]}
        try:
            cluster.patch("StatefulSet", name, {"metadata": version, "spec": {"replicas": 0}})
        except Conflict:  # somebody extends the lease at this moment
            continue
        cluster.create("Event", _event(cluster.namespace, server, lease, now))
        log.warning("server_reaped", server=name, held_by=lease.holder)
        stopped.append(name)
    return stopped


def _event(namespace: str, server: Object, lease: Lease, now: datetime) -> Object:
    """What `kubectl describe` shows, and an alert may count."""
    name, time = server["metadata"]["name"], write(now)
    over = "an unreadable time" if lease.until is None else write(lease.until)
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{name}-", "namespace": namespace},
        "involvedObject": {
            "apiVersion": "apps/v1",
            "kind": "StatefulSet",
            "name": name,
            "namespace": namespace,
            "uid": server["metadata"]["uid"],
        },
        "type": "Warning",
        "reason": "LeaseOver",
        "message": f"stopped: the lease of run {lease.holder} ended at {over}",
        "source": {"component": "mmar-jobs-reaper"},
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    }
