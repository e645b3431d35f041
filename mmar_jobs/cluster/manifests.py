"""Manifests that a user or a ConfigMap brings: YAML files of one or many documents.

Not here: what is made of them (jobs.py).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mmar_jobs.cluster.jobs import STAGE_LABEL
from mmar_jobs.errors import SettingsError


def find_template(place: Path, stage: str) -> dict[str, Any]:
    """The Job labelled with `stage` among the documents of a file, or of a folder's *.yaml."""
    files = sorted(place.glob("*.yaml")) if place.is_dir() else [place]
    documents = [each for path in files for each in read_documents(path)]
    found: list[dict[str, Any]] = [each for each in documents if _is_job(each, stage)]
    if len(found) != 1:
        told = "no Job" if not found else f"{len(found)} Jobs"
        raise SettingsError(
            f"{place} has {told} labelled {STAGE_LABEL}={stage}: give --jobs the folder of the "
            "manifests (k8s/jobs, k8s/benchmark, or what kubectl kustomize -o wrote)"
        )
    return found[0]


def read_documents(path: Path) -> Iterator[Any]:
    """Every document of a YAML file; SettingsError where it cannot be read."""
    try:
        yield from yaml.safe_load_all(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        raise SettingsError(f"{path}: {reason}: correct the path") from None
    except (yaml.YAMLError, ValueError) as error:
        raise SettingsError(f"{path} is not YAML: {' '.join(str(error).split())}") from None


def _is_job(document: Any, stage: str) -> bool:
    if not isinstance(document, dict) or document.get("kind") != "Job":
        return False
    labels = (document.get("metadata") or {}).get("labels") or {}
    return bool(labels.get(STAGE_LABEL) == stage)
