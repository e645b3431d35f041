"""Why a Job does not run, and how it ended, in one sentence for people; pure.

Reads what Kubernetes says of a Job, its pods and its events. Not here: reading them (api.py), and
deciding how long to wait (run_job.py).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from mmar_jobs.cluster.jobs import CONTAINER, condition
from mmar_jobs.errors import ExitCode

Object = Mapping[str, Any]

_OURS: Final = frozenset(int(code) for code in ExitCode)
_PULL: Final = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
)
_SIGNALS: Final = {137: "SIGKILL", 143: "SIGTERM"}
_MISSING: Final = re.compile(r'(secret|configmap)s? "(?P<name>[^"]+)" not found', re.IGNORECASE)
_DISRUPTIONS: Final = {
    "PreemptionByScheduler": "made room for a pod of higher priority",
    "DeletionByTaintManager": "had to leave its node, which was tainted",
    "EvictionByEvictionAPI": "was evicted, as when a node is drained",
    "DeletionByPodGC": "was lost with its node",
    "TerminationByKubelet": "was ended by its node, which was short of something or shut down",
}


class Remedy(Enum):
    """Who can help a Job that does not run."""

    TIME = "it waits its turn"
    QUOTA = "others must finish, or the quota must grow"
    PEOPLE = "somebody must change something"


@dataclass(frozen=True)
class Trouble:
    """Why a Job does not run yet."""

    remedy: Remedy
    sentence: str


@dataclass(frozen=True)
class Ending:
    """How a Job ended: an exit code of the contract, why, and what the stage said of its result."""

    code: ExitCode
    sentence: str
    outcome: Mapping[str, Any] | None = None


def trouble_of(job: Object, pods: Sequence[Object], events: Sequence[Object]) -> Trouble | None:
    """Why nothing runs, as far as anybody can tell; None while it runs, or just begins."""
    if job["spec"].get("suspend"):
        return Trouble(
            Remedy.TIME, "waits for its queue: the Job is suspended until it is admitted"
        )
    live = [pod for pod in pods if pod["status"].get("phase") == "Pending"]
    if live:
        return pod_trouble(live[-1], events)
    if any(pod["status"].get("phase") == "Running" for pod in pods):
        return None
    return creation_trouble(job["metadata"]["name"], events)


def creation_trouble(name: str, events: Sequence[Object]) -> Trouble | None:
    """Why the controller of the Job or StatefulSet `name` could not make a pod."""
    message = _last_message(events, name, "FailedCreate")
    if message is None:
        return None
    if "exceeded quota" in message:
        detail = message.partition("exceeded quota: ")[2]
        return Trouble(
            Remedy.QUOTA, f"no pod may be made: the namespace's quota is used up ({detail})"
        )
    reason = message.partition(" is forbidden: ")[2] or message
    return Trouble(Remedy.PEOPLE, f"no pod can be made: {reason}")


def pod_trouble(pod: Object, events: Sequence[Object]) -> Trouble | None:
    """Why a pending pod does not run yet."""
    name = pod["metadata"]["name"]
    for status in _statuses(pod):
        waiting = status.get("state", {}).get("waiting", {})
        found = _waiting_trouble(pod, status, waiting, events)
        if found is not None:
            return found
    for each in pod["status"].get("conditions") or []:
        if each["type"] == "PodScheduled" and each["status"] == "False":
            if each.get("reason") == "SchedulingGated":
                return Trouble(Remedy.TIME, "waits for its queue: the pod is not admitted yet")
            return Trouble(Remedy.TIME, f"waits for a node: {each.get('message', 'not scheduled')}")
    message = _last_message(events, name, "FailedMount", "FailedAttachVolume")
    if message is not None:
        return _missing(message, pod) or Trouble(Remedy.TIME, f"waits for a volume: {message}")
    message = _last_message(events, name, "FailedCreatePodSandBox")
    return None if message is None else Trouble(Remedy.TIME, f"waits for its sandbox: {message}")


def _waiting_trouble(
    pod: Object, status: Object, waiting: Object, events: Sequence[Object]
) -> Trouble | None:
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    if reason in _PULL:
        why = _last_message(events, pod["metadata"]["name"], "Failed", having="pull") or message
        return Trouble(
            Remedy.PEOPLE,
            f"image {status['image']} cannot be pulled ({_cut(why or reason)}): push it, correct "
            "--image, or give the service account a pull secret",
        )
    if reason in ("CreateContainerConfigError", "CreateContainerError", "RunContainerError"):
        return _missing(message, pod) or Trouble(
            Remedy.PEOPLE, f"container {status['name']} cannot be made: {_cut(message)}"
        )
    return None


def _missing(message: str, pod: Object) -> Trouble | None:
    found = _MISSING.search(message)
    if found is None:
        return None
    kind = "Secret" if found[1].lower().startswith("secret") else "ConfigMap"
    where = pod["metadata"]["namespace"]
    return Trouble(Remedy.PEOPLE, f"needs {kind} {found['name']}, which namespace {where} lacks")


def ending_of(job: Object, pods: Sequence[Object]) -> Ending:
    """How a finished Job ended, by its last pod; `pods` in order of creation."""
    finished = [pod for pod in pods if pod["status"].get("phase") in ("Succeeded", "Failed")]
    if condition(job, "Complete") is not None:
        good = [pod for pod in finished if pod["status"]["phase"] == "Succeeded"]
        return Ending(ExitCode.DONE, "done", _outcome(good[-1]) if good else None)
    failed = condition(job, "Failed") or {}
    if failed.get("reason") == "DeadlineExceeded":
        return Ending(
            ExitCode.TRY_AGAIN,
            "the Job's activeDeadlineSeconds are over: run the same command again to go on, or "
            "raise them",
        )
    if not finished:
        return Ending(
            ExitCode.TRY_AGAIN, "its pods are gone without a word: run the same command again"
        )
    code, sentence = death_of(finished[-1])
    return Ending(code, sentence)


def death_of(pod: Object) -> tuple[ExitCode, str]:
    """Exit code and sentence for a pod that failed."""
    name, status = pod["metadata"]["name"], pod["status"]
    disruption = condition(pod, "DisruptionTarget")
    if disruption is not None:
        why = _DISRUPTIONS.get(disruption.get("reason", ""), "was disrupted")
        return ExitCode.TRY_AGAIN, f"pod {name} {why}: {_cut(disruption.get('message', ''))}"
    if status.get("reason"):  # Evicted, NodeLost, Shutdown, UnexpectedAdmissionError
        words = f"{status['reason']}: {_cut(status.get('message', ''))}"
        return ExitCode.TRY_AGAIN, f"pod {name} was lost ({words})"
    terminated = _terminated(pod)
    code, reason = terminated.get("exitCode"), terminated.get("reason", "")
    if reason == "OOMKilled":
        return ExitCode.SETTINGS, (
            f"pod {name} was killed at its memory limit of {_memory_limit(pod)}: raise the limit "
            "in the Job's manifest, or lower --engine.rows-per-batch or --optim.token-budget"
        )
    if code in _OURS and code != ExitCode.DONE:
        return ExitCode(code), f"the stage ended with exit code {code}; its last lines say why"
    if reason in ("StartError", "ContainerCannotRun"):
        why = _cut(terminated.get("message", ""))
        return ExitCode.SETTINGS, f"pod {name} could not start its command: {why}"
    if code is None or reason == "ContainerStatusUnknown":
        return ExitCode.TRY_AGAIN, f"pod {name} is gone without a word: run the same command again"
    if code in _SIGNALS:
        return ExitCode.TRY_AGAIN, f"pod {name} was ended from outside ({_SIGNALS[code]})"
    return ExitCode.BUG, f"the stage crashed with exit code {code}; its last lines may say why"


def _terminated(pod: Object) -> Object:
    for status in pod["status"].get("containerStatuses") or []:
        if status["name"] == CONTAINER:
            found: Object = status.get("state", {}).get("terminated", {})
            return found
    return {}


def _statuses(pod: Object) -> list[Object]:
    status = pod["status"]
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def _memory_limit(pod: Object) -> str:
    for container in pod["spec"]["containers"]:
        if container["name"] == CONTAINER:
            limit: str = container.get("resources", {}).get("limits", {}).get("memory", "its node")
            return limit
    return "its node"


def _outcome(pod: Object) -> Mapping[str, Any] | None:
    try:
        found = json.loads(_terminated(pod).get("message", ""))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _last_message(
    events: Sequence[Object], name: str, *reasons: str, having: str = ""
) -> str | None:
    found = [
        str(event.get("message", ""))
        for event in events
        if event["involvedObject"].get("name") == name
        and event.get("reason") in reasons
        and having in str(event.get("message", ""))
    ]
    return found[-1] if found else None


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:299]}…"
