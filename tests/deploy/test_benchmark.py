"""Tests of benchmarks on the cluster: their Jobs, their workflow, and its start by webhook."""

import copy
import importlib
import json
import re
from typing import Any

import kubernetes_validate
import pytest
from hera.events import models
from hera.workflows import models as workflow_models

from mmar_jobs.arguments import Parser
from mmar_jobs.bench.cells import parse_matrix
from mmar_jobs.bench.command import bench_parser
from mmar_jobs.bench.judge_command import add_judge_flags
from tests.deploy.charts import KUBERNETES, rendered
from tests.deploy.manifests import (
    BENCHMARK,
    Object,
    benches,
    events,
    events_pod,
    jobs,
    read_one,
)
from tests.deploy.workflows import declared, library, templates, workflow

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HOME = "mmar-jobs-benchmark"
GIVEN = {"run-id": "bench-1", "commit": COMMIT, "image": "registry.example/train@sha256:0"}


@pytest.mark.parametrize("label", ["bench-cpu", "bench-gpu"])
def test_the_job_of_a_bench_is_valid(label: str) -> None:
    """By the API server's own schema, in the file of its name."""
    kubernetes_validate.validate(benches()[label], KUBERNETES, strict=True)
    assert benches()[label] == read_one(BENCHMARK / f"{label}.yaml")


def _without_own(job: Object, *, is_bench: bool) -> Object:
    """A Job less what a bench has of its own."""
    rest = copy.deepcopy(job)
    del rest["metadata"]
    spec = rest["spec"]
    for key in ("activeDeadlineSeconds", "backoffLimit"):
        del spec[key]
    del spec["template"]["metadata"]
    pod = spec["template"]["spec"]
    account = pod.pop("serviceAccountName")
    assert ("mmar-jobs-benchmark" if is_bench else "mmar-jobs-stage") == account
    del pod["terminationGracePeriodSeconds"]
    [container] = pod["containers"]
    for key in ("args", "env", "envFrom"):
        container.pop(key, None)
    if "nvidia.com/gpu" not in container["resources"]["limits"]:
        del container["resources"]
        [scratch] = [volume for volume in pod["volumes"] if volume["name"] == "scratch"]
        del scratch["emptyDir"]["sizeLimit"]
    return rest


@pytest.mark.parametrize(("label", "stage"), [("bench-cpu", "evaluate"), ("bench-gpu", "train")])
def test_a_bench_has_the_pod_of_the_stage_like_it(label: str, stage: str) -> None:
    """Exit codes, security, volumes and nodes are a stage's; account, keys and time are its own."""
    bench = _without_own(benches()[label], is_bench=True)
    assert _without_own(jobs()[stage], is_bench=False) == bench


@pytest.mark.parametrize("label", ["bench-cpu", "bench-gpu"])
def test_a_bench_cannot_use_the_keys_of_stages(label: str) -> None:
    """It runs unmerged code: the runs' artifacts and the baseline are not its to write."""
    [container] = benches()[label]["spec"]["template"]["spec"]["containers"]
    secrets = [
        source["secretRef"]["name"] for source in container["envFrom"] if "secretRef" in source
    ]
    assert ["mmar-jobs-benchmark-s3"] == secrets


def _values(name: str) -> dict[str, Any]:
    return {key: item["value"] for key, item in declared(workflow(name)).items() if "value" in item}


def test_workflow_and_template_have_the_same_parameters() -> None:
    """The file that users submit names the defaults that a webhook's workflow gets too."""
    template = declared(library()[HOME])
    assert template.keys() == declared(workflow("benchmark-workflow")).keys()
    defaults = {key: item["value"] for key, item in template.items() if "value" in item}
    assert defaults == _values("benchmark-workflow")
    assert {"run-id", "commit", "image"} == template.keys() - defaults.keys()


def _matrix() -> list[dict[str, str]]:
    rows: list[dict[str, str]] = json.loads(_values("benchmark-workflow")["cells"])
    return rows


def _filled(words: list[str], inputs: dict[str, str]) -> list[str]:
    """Arguments of a leaf, parameters put in."""
    names = {
        f"workflow.parameters.{k}": v for k, v in (_values("benchmark-workflow") | GIVEN).items()
    }
    names |= {f"inputs.parameters.{key}": value for key, value in inputs.items()}
    return [re.sub(r"\{\{(.+?)\}\}", lambda match: names[match[1]], word) for word in words]


@pytest.mark.parametrize("row", _matrix(), ids=lambda row: row["bench"])
def test_every_cell_runs_a_bench_that_exists(row: dict[str, str]) -> None:
    """The leaf's command takes its arguments, and the bench its flags, on a node that has a Job."""
    parser = Parser("run-bench")
    module = importlib.import_module("mmar_jobs.cluster.run_bench_command")
    module.add_arguments(parser)
    container = templates()[HOME, "measure"].body["container"]
    assert ["mmar-jobs", "cluster", "run-bench"] == container["command"]
    chosen = parser.parse_args(_filled(container["args"], row))
    assert (row["bench"], row["on"], COMMIT) == (chosen.bench, chosen.on, chosen.commit)
    assert f"bench-{chosen.on}" in benches()
    [cell] = parse_matrix(json.dumps([row]))
    assert cell.name == bench_parser().parse_args(cell.arguments).name


def test_the_verdict_is_on_the_cells_that_were_measured() -> None:
    """The fan-in gets the same matrix, runs when a cell failed, and gives out the table."""
    parser = Parser("judge")
    add_judge_flags(parser)
    judge = templates()[HOME, "judge"].body
    chosen = parser.parse_args(_filled(judge["container"]["args"], {}))
    assert len(_matrix()) == len(parse_matrix(chosen.cells))
    [[measure], [last]] = templates()[HOME, "benchmark"].steps
    assert {"failed": True, "error": True} == measure["continueOn"]
    assert ("judge", "{{workflow.parameters.cells}}") == (last["template"], measure["withParam"])
    [table] = judge["outputs"]["parameters"]
    assert f"{chosen.outputs}/table" == table["valueFrom"]["path"]


def test_a_cell_may_take_as_long_as_its_job() -> None:
    """A pod that waits is not ended before the Job that it waits for."""
    leaf = templates()[HOME, "measure"].body
    for job in benches().values():
        assert job["spec"]["activeDeadlineSeconds"] < leaf["activeDeadlineSeconds"]


def _kept(model: Any, item: Object) -> bool:
    """Whether a model, made from Argo's API, keeps every key: a misspelt one would vanish."""
    loaded = model.model_validate(item)
    return bool(item == loaded.model_dump(mode="json", by_alias=True, exclude_none=True))


def test_events_are_valid() -> None:
    """By the models of Argo Events and of Argo, each for its part, or the API server's schemas."""
    for item in copy.deepcopy(events()):
        if item["kind"] not in ("EventSource", "Sensor"):
            kubernetes_validate.validate(item, KUBERNETES, strict=True)
            continue
        # These two models begin after the kind, and leave out what their API inlines.
        assert "argoproj.io/v1alpha1" == item.pop("apiVersion")
        model = getattr(models, item.pop("kind"))
        for hook in item["spec"].pop("webhook", {}).values():
            assert _kept(models.WebhookContext, hook)
        for trigger in item["spec"].get("triggers", []):
            made = trigger["template"]["k8s"]["source"].pop("resource")
            assert _kept(workflow_models.Workflow, made)
        assert _kept(model, item)


def _event(kind: str) -> Object:
    [found] = [item for item in events() if item["kind"] == kind]
    return found


def test_a_call_reaches_its_sensor() -> None:
    """Source, event and port have the same names on both sides, and calls need a token."""
    source, sensor = _event("EventSource"), _event("Sensor")
    [dependency] = sensor["spec"]["dependencies"]
    assert source["metadata"]["name"] == dependency["eventSourceName"]
    hook = source["spec"]["webhook"][dependency["eventName"]]
    assert hook["authSecret"]["name"]
    assert [{"port": 12000, "targetPort": int(hook["port"])}] == source["spec"]["service"]["ports"]


def test_a_call_fills_the_parameters_that_the_template_lacks() -> None:
    """Each destination is the parameter of that name; what the call does not give has a default."""
    [trigger] = _event("Sensor")["spec"]["triggers"]
    made = trigger["template"]["k8s"]
    spec = made["source"]["resource"]["spec"]
    assert {"name": HOME} == spec["workflowTemplateRef"]
    names = [parameter["name"] for parameter in spec["arguments"]["parameters"]]
    assert set(names) == {k for k, v in declared(library()[HOME]).items() if "value" not in v}
    filled = {
        names[int(each["dest"].split(".")[3])]: each["src"].get("dataKey")
        for each in made["parameters"]
    }
    assert {"run-id": None, "commit": "body.commit", "image": "body.image"} == filled


@pytest.mark.parametrize(
    ("path", "good", "bad"),
    [
        ("body.commit", COMMIT, f"{COMMIT}x"),
        ("body.commit", COMMIT, "main"),
        ("body.image", f"registry.example/mmar-jobs/train@sha256:{'0' * 64}", "busybox"),
        (
            "body.image",
            f"registry.example/mmar-jobs/train@sha256:{'0' * 64}",
            f"evil.example/registry.example/mmar-jobs/train@sha256:{'0' * 64}",
        ),
        (
            "body.image",
            f"registry.example/mmar-jobs/train@sha256:{'0' * 64}",
            f"registryXexample/mmar-jobs/train@sha256:{'0' * 64}",
        ),
    ],
)
def test_a_call_starts_this_projects_images_only(path: str, good: str, bad: str) -> None:
    """Who has the token cannot start others, nor name a commit that is no hash."""
    [dependency] = _event("Sensor")["spec"]["dependencies"]
    [pattern] = [each["value"][0] for each in dependency["filters"]["data"] if each["path"] == path]
    assert re.search(pattern, good)
    assert not re.search(pattern, bad)


def test_the_sensor_may_create_workflows() -> None:
    """Its account is the chart's submitter."""
    pod = events_pod(_event("Sensor"))
    assert pod is not None
    account = pod["spec"]["serviceAccountName"]
    [role] = [
        item
        for item in rendered("mmar-jobs-default")
        if (item["kind"], item["metadata"]["name"]) == ("Role", account)
    ]
    assert any(
        "workflows" in rule["resources"] and "create" in rule["verbs"] for rule in role["rules"]
    )
