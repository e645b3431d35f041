"""A run as an Argo workflow: its parameters checked, refused while the run is under way.

Not here: the workflow (argo/rest-workflow.yaml), whose mutexes hold also against other clients.
"""

import difflib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

from mmar_jobs.cluster.api import Cluster, Conflict, NotFound, Object
from mmar_jobs.cluster.jobs import RUN_LABEL
from mmar_jobs.cluster.manifests import read_documents
from mmar_jobs.errors import SettingsError

ENDED: Final = ("Succeeded", "Failed", "Error")  # phases of a workflow


def read_workflow(path: Path) -> dict[str, Any]:
    """The one Workflow of a file."""
    found = [each for each in read_documents(path) if isinstance(each, dict)]
    if len(found) != 1 or found[0].get("kind") != "Workflow":
        raise SettingsError(f"{path} is no manifest of one Workflow")
    return found[0]


def workflow_of(template: Object, name: str, given: Mapping[str, str]) -> Object:
    """The workflow with its parameters; SettingsError for what is unknown or missing."""
    workflow = deepcopy(template)
    parameters = workflow["spec"].get("arguments", {}).get("parameters", [])
    known = [str(parameter["name"]) for parameter in parameters]
    for each in given:
        if each not in known:
            close = difflib.get_close_matches(each, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise SettingsError(f"the workflow has no parameter {each}{hint}")
    for parameter in parameters:
        if parameter["name"] in given:
            parameter["value"] = given[parameter["name"]]
    missing = [parameter["name"] for parameter in parameters if "value" not in parameter]
    if missing:
        raise SettingsError(f"the workflow needs {', '.join(f'-p {each}=…' for each in missing)}")
    labels = workflow["metadata"].setdefault("labels", {})
    labels[RUN_LABEL] = name
    return workflow


def submit(cluster: Cluster, workflow: Object) -> str:
    """Create it; SettingsError where a workflow of the same run is under way."""
    name = workflow["metadata"]["labels"][RUN_LABEL]
    try:
        found = cluster.list("Workflow", labels=f"{RUN_LABEL}={name}")
    except NotFound:
        raise SettingsError(
            "this cluster has no Argo Workflows: run the stages by mmar-jobs cluster run-job"
        ) from None
    live = [each for each in found if each.get("status", {}).get("phase") not in ENDED]
    if live:
        raise SettingsError(
            f"run {name} is under way as workflow {live[0]['metadata']['name']}: wait for it (argo "
            "watch), or stop it first (argo stop)"
        )
    # Two submits at one moment see the same workflows, so they choose one name: the second fails.
    made = _name_of_next(workflow, [each["metadata"]["name"] for each in found])
    metadata = {k: v for k, v in workflow["metadata"].items() if k != "generateName"}
    try:
        cluster.create("Workflow", workflow | {"metadata": metadata | {"name": made}})
    except Conflict:
        raise SettingsError(
            f"run {name} was submitted by somebody else just now, as workflow {made}: wait for it "
            "(argo watch)"
        ) from None
    return made


def _name_of_next(workflow: Object, names: Sequence[str]) -> str:
    """The workflow's own beginning, its run, and one more than the last submit of the run had."""
    metadata = workflow["metadata"]
    prefix = f"{metadata.get('generateName', 'mmar-jobs-')}{metadata['labels'][RUN_LABEL]}-"
    numbers = [each.removeprefix(prefix) for each in names if each.startswith(prefix)]
    return f"{prefix}{1 + max((int(each) for each in numbers if each.isdecimal()), default=0)}"
