"""Tests of submitting a run: parameters, one live workflow a run, and words for what is missing."""

from pathlib import Path
from typing import Any

import pytest

from mmar_jobs.cluster.api import Cluster
from mmar_jobs.cluster.submit import read_workflow, submit, workflow_of
from mmar_jobs.errors import SettingsError
from tests.cluster.fake_api import FakeApi

ROOT = Path(__file__).parent.parent.parent
GIVEN = {"run-id": "r", "questions": "s3://b/q.jsonl", "benchmark": "s3://b/m.jsonl"}


def rest(**given: str) -> dict[str, Any]:
    """The workflow that users submit."""
    template = read_workflow(ROOT / "argo/rest-workflow.yaml")
    return workflow_of(template, "r", GIVEN | {k.replace("_", "-"): v for k, v in given.items()})


def test_a_run_is_submitted_with_its_parameters(api: FakeApi, cluster: Cluster) -> None:
    """And the label by which it is found."""
    name = submit(cluster, rest(iterations="2"))
    made = api.objects["workflows"][name]
    values = {each["name"]: each["value"] for each in made["spec"]["arguments"]["parameters"]}
    assert ("r", "2") == (values["run-id"], values["iterations"])
    assert "r" == made["metadata"]["labels"]["mmar-jobs/run-id"]


def test_a_run_that_is_under_way_is_not_submitted_again(api: FakeApi, cluster: Cluster) -> None:
    """Exit 2 with the workflow's name; once that has ended it may be."""
    name = submit(cluster, rest())
    with pytest.raises(SettingsError, match=f"under way as workflow {name}"):
        submit(cluster, rest())
    assert "mmar-jobs-rest-r-1" == name
    api.put("workflows", api.objects["workflows"][name] | {"status": {"phase": "Failed"}})
    assert "mmar-jobs-rest-r-2" == submit(cluster, rest())


def test_of_two_submits_that_saw_no_other_one_is_refused(cluster: Cluster) -> None:
    """The workflow of the first has no label yet when the second looks, and its name is taken."""
    cluster.create("Workflow", rest() | {"metadata": {"name": "mmar-jobs-rest-r-1"}})
    with pytest.raises(SettingsError, match="submitted by somebody else just now"):
        submit(cluster, rest())


def test_parameters_are_checked_before_anything_is_asked() -> None:
    """A misspelt one has a hint, a missing one its flag."""
    with pytest.raises(SettingsError, match="no parameter iteration; did you mean iterations"):
        rest(iteration="2")
    template = read_workflow(ROOT / "argo/rest-workflow.yaml")
    with pytest.raises(SettingsError, match="needs -p questions=…, -p benchmark=…"):
        workflow_of(template, "r", {"run-id": "r"})


def test_a_cluster_without_argo_is_said(api: FakeApi, cluster: Cluster) -> None:
    """With what to do instead."""
    api.refusals["get workflows"] = (404, "the server could not find the requested resource")
    with pytest.raises(SettingsError, match="has no Argo Workflows: run the stages by"):
        submit(cluster, rest())


def test_a_file_that_is_no_workflow_is_refused() -> None:
    """By its name."""
    with pytest.raises(SettingsError, match=r"filter.yaml is no manifest of one Workflow"):
        read_workflow(ROOT / "k8s/jobs/filter.yaml")
