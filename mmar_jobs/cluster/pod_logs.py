"""Lines of a container's log, each once, across lost connections.

Not here: which pods (run_job.py, logs_command.py).
"""

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from mmar_jobs.cluster.api import Cluster, NotFound, Object, Refused
from mmar_jobs.cluster.jobs import CONTAINER
from mmar_jobs.errors import TryAgain

_PAUSE_S: Final = 1.0
_MOST_CUTS: Final = 10_000  # a week of following, cut off every minute


def read_log(cluster: Cluster, pod: str, *, follow: bool) -> Iterator[str]:
    """Every line of the stage's container; with `follow` until the container has ended.

    The server stamps lines with nanoseconds, in one width, so stamps compare as text; after a lost
    connection it starts again with the second of the last line, and what was seen is dropped.
    """
    last = ""
    for _ in range(_MOST_CUTS):
        is_whole = False
        query = {"container": CONTAINER, "timestamps": "true"}
        query |= {"follow": "true"} if follow else {}
        query |= {"sinceTime": f"{last[:19]}Z"} if last else {}
        # Cut off, gone, or so new that it has no log yet.
        with suppress(TryAgain, NotFound, Refused):
            for line in cluster.log_lines(pod, query):
                stamp, _, text = line.partition(" ")
                if stamp > last:
                    last = stamp
                    yield text
            is_whole = True
        found = cluster.find("Pod", pod)
        if found is None or (is_whole and (not follow or _has_ended(found))):
            return
        time.sleep(_PAUSE_S)


def _has_ended(pod: Object) -> bool:
    return pod["status"].get("phase") in ("Succeeded", "Failed")


def has_log(pod: Object) -> bool:
    """Whether the stage's container has begun."""
    for status in pod["status"].get("containerStatuses") or []:
        if status["name"] == CONTAINER:
            return bool({"running", "terminated"} & set(status.get("state", {})))
    return False
