"""The YAML of k8s/, argo/ and charts/ as objects.

Not here: what must hold for them.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
JOBS = ROOT / "k8s" / "jobs"
OFFLINE = ROOT / "k8s" / "offline"
BENCHMARK = ROOT / "k8s" / "benchmark"
ARGO = ROOT / "argo"
CHARTS = ROOT / "charts"

Object = dict[str, Any]


def read(path: Path) -> list[Object]:
    """All objects of one file."""
    return [item for item in yaml.safe_load_all(path.read_text(encoding="utf-8")) if item]


def read_one(path: Path) -> Object:
    """The only object of a file."""
    [found] = read(path)
    return found


@cache
def jobs() -> dict[str, Object]:
    """The Job of every stage, by stage."""
    return _labelled(JOBS)


@cache
def offline() -> dict[str, Object]:
    """The Job of every stage that can ask vLLM in its own process."""
    return _labelled(OFFLINE)


@cache
def benches() -> dict[str, Object]:
    """The Job of benches on each kind of node, by its label."""
    return _labelled(BENCHMARK)


def _labelled(folder: Path) -> dict[str, Object]:
    paths = [path for path in sorted(folder.glob("*.yaml")) if path.stem != "kustomization"]
    found = [read_one(path) for path in paths]
    return {job["metadata"]["labels"]["mmar-jobs/stage"]: job for job in found}


@cache
def events() -> list[Object]:
    """What argo/events makes."""
    paths = sorted((ARGO / "events").glob("*.yaml"))
    return [item for path in paths if path.stem != "kustomization" for item in read(path)]


def events_pod(item: Object) -> Object | None:
    """The metadata and spec of the pod of an EventSource or Sensor.

    Their controller adds the image; whether there is a token is the account's to say.
    """
    if item["kind"] not in ("EventSource", "Sensor"):
        return None
    template = item["spec"]["template"]
    spec = {key: value for key, value in template.items() if key not in ("metadata", "container")}
    spec["containers"] = [template["container"] | {"name": "main", "image": "argo-events:pinned"}]
    for account in (each for each in events() if each["kind"] == "ServiceAccount"):
        if account["metadata"]["name"] == template["serviceAccountName"]:
            spec["automountServiceAccountToken"] = account["automountServiceAccountToken"]
    return {"metadata": template["metadata"], "spec": spec}


def strings(value: Any) -> Iterator[str]:
    """Every string anywhere in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from strings(key)
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


def pod_of(item: Object) -> Object | None:
    """The metadata and spec of the pods that an object makes, None where it makes none."""
    spec = item.get("spec", {})
    match item["kind"]:
        case "Pod":
            return {"metadata": item["metadata"], "spec": spec}
        case "CronJob":
            return dict(spec["jobTemplate"]["spec"]["template"])
        case "Job" | "StatefulSet" | "Deployment":
            return dict(spec["template"])
    return None
