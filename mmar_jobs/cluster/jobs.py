"""A stage's Job: its name, its manifest, and what a Job of that name that exists means; pure.

Not here: the manifests themselves (k8s/jobs/), talking to a cluster (api.py).
"""

import hashlib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Protocol

from mmar_jobs.errors import SettingsError
from mmar_jobs.manifest import canonical_json

Object = dict[str, Any]

CONTAINER: Final = "stage"
ITERATED: Final = ("generate", "filter", "train", "evaluate")
STAGES: Final = ("ingest", *ITERATED, "infer", "submit", "report")
RUN_LABEL: Final = "mmar-jobs/run-id"
ITERATION_LABEL: Final = "mmar-jobs/iteration"
STAGE_LABEL: Final = "mmar-jobs/stage"
DIGEST: Final = "mmar-jobs/spec-sha256"  # annotation: of the manifest that was applied
GPU: Final = "nvidia.com/gpu"
_OUTCOME_FILE: Final = "/dev/termination-log"


class Work(Protocol):
    """What a Job does: the same work has the same name, whoever asks and how often."""

    @property
    def name(self) -> str:
        """The Job's name."""

    @property
    def labels(self) -> dict[str, str]:
        """On the Job and its pods."""

    def arguments(self, flags: Sequence[str]) -> list[str]:
        """What follows `mmar-jobs` in the container."""


@dataclass(frozen=True)
class StageWork:
    """One stage of one run."""

    stage: str
    run_id: str
    iteration: int

    @property
    def name(self) -> str:
        """See Work."""
        turn = f"-i{self.iteration}" if self.stage in ITERATED else ""
        return f"{self.run_id}{turn}-{self.stage}"

    @property
    def labels(self) -> dict[str, str]:
        """See Work."""
        found = {RUN_LABEL: self.run_id, STAGE_LABEL: self.stage}
        return found | ({ITERATION_LABEL: str(self.iteration)} if self.stage in ITERATED else {})

    def arguments(self, flags: Sequence[str]) -> list[str]:
        """See Work."""
        turn = ["--iteration", str(self.iteration)] if self.stage in ITERATED else []
        own = ["--run-id", self.run_id, *turn, "--outcome-file", _OUTCOME_FILE]
        return [self.stage, *own, *flags]


def job_of(template: Object, work: Work, *, image: str | None, flags: Sequence[str]) -> Object:
    """The manifest to apply: `template` with name, labels, arguments, image and its own digest."""
    job = deepcopy(template)
    container = stage_container(job)
    container["args"] = work.arguments(flags)
    if image is not None:
        container["image"] = image
    metadata = job.setdefault("metadata", {})
    metadata.pop("namespace", None)
    metadata["name"] = work.name
    for place in (metadata, job["spec"]["template"].setdefault("metadata", {})):
        place["labels"] = place.get("labels", {}) | work.labels
    digest = hashlib.sha256(canonical_json(job)).hexdigest()
    metadata["annotations"] = metadata.get("annotations", {}) | {DIGEST: digest}
    return job


def stage_container(job: Object) -> Object:
    """The container that runs the stage; SettingsError where the manifest has none."""
    try:
        containers: list[Object] = job["spec"]["template"]["spec"]["containers"]
        return next(each for each in containers if each["name"] == CONTAINER)
    except (KeyError, TypeError, StopIteration):
        raise SettingsError(
            f"the Job's manifest has no container {CONTAINER!r}: take one of k8s/jobs/"
        ) from None


class Fate(Enum):
    """What an existing Job means to somebody who wants the same work done."""

    ABSENT = "there is none"
    LEAVING = "it is being deleted"
    FAILED = "it failed: make it again"
    DONE = "it did the very same work"
    RUNNING = "it does the very same work"
    OTHER = "it does, or did, other work under this name"


def fate_of(found: Object | None, digest: str) -> Fate:
    """See Fate; a failed Job may be replaced, whatever it was to do."""
    if found is None:
        return Fate.ABSENT
    if "deletionTimestamp" in found["metadata"]:
        return Fate.LEAVING
    if condition(found, "Failed") is not None:
        return Fate.FAILED
    if found["metadata"].get("annotations", {}).get(DIGEST) != digest:
        return Fate.OTHER
    return Fate.DONE if condition(found, "Complete") is not None else Fate.RUNNING


def differences(found: Object, wanted: Object) -> str:
    """In which of the things that people change two Jobs differ."""
    old, new = stage_container(found), stage_container(wanted)
    said = [
        f"{name} {_short(old.get(name))}, now {_short(new.get(name))}"
        for name in ("image", "args")
        if old.get(name) != new.get(name)
    ]
    return "; ".join(said) or "its manifest has changed"


def _short(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


def condition(thing: Mapping[str, Any], kind: str) -> Object | None:
    """The condition of that type, where it is true."""
    conditions: list[Object] = thing.get("status", {}).get("conditions") or []
    return next((c for c in conditions if c["type"] == kind and c["status"] == "True"), None)


def num_gpus(pod_spec: Mapping[str, Any]) -> int:
    """GPUs that a pod asks for."""
    limits = [each.get("resources", {}).get("limits", {}) for each in pod_spec["containers"]]
    return sum(int(limit.get(GPU, 0)) for limit in limits)
