"""Tests of the charts: what Helm makes of them, what they refuse, what they say of their values."""

import copy
import json
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hera.workflows import models

from charts.package import copies
from charts.readme import values
from mmar_jobs.__main__ import COMMANDS
from tests.deploy.charts import CASES, KUBERNETES, helm, rendered, rendered_text, template
from tests.deploy.manifests import CHARTS as FOLDERS
from tests.deploy.manifests import Object, benches, jobs, pod_of
from tests.deploy.workflows import WORKFLOWS, declared, library, workflow
from tests.goldens import CHARTS, FLAGS

NAMES = ("mmar-jobs", "vllm")
NEEDED = {"mmar-jobs": ("--set=store=s3://bucket",), "vllm": ()}
# Kinds that Kubernetes itself does not have.
FOREIGN = {"PrometheusRule", "ServiceMonitor"}


@pytest.mark.parametrize("case", CASES)
def test_a_chart_renders_as_it_did(case: str) -> None:
    """A change of a template shows here, to be read before it is believed."""
    assert (CHARTS / f"{case}.yaml").read_text() == rendered_text(case)


@pytest.mark.parametrize("case", CASES)
def test_what_is_rendered_is_valid(case: str) -> None:
    """By the API server's schemas with nothing unknown in it, or by Argo's."""
    for item in rendered(case):
        if item["kind"] == "WorkflowTemplate":
            loaded = models.WorkflowTemplate.model_validate(item)
            assert item == loaded.model_dump(mode="json", by_alias=True, exclude_none=True)
        elif item["kind"] not in FOREIGN:
            kubernetes_validate.validate(item, KUBERNETES, strict=True)
        assert "mmar-jobs" == item["metadata"]["namespace"]


@pytest.mark.parametrize("name", NAMES)
def test_helm_finds_nothing_to_lint(name: str) -> None:
    """`helm lint --strict` is clean."""
    result = helm(
        "lint", "--strict", "--kube-version", KUBERNETES, str(FOLDERS / name), *NEEDED[name]
    )
    assert result.returncode == 0, result.stdout


def test_copies_are_those_of_their_sources() -> None:
    """Helm reads nothing outside a chart; `make charts` renews what it carries."""
    stale = [
        path for path, text in copies().items() if not path.exists() or path.read_text() != text
    ]
    assert [] == stale
    kept = set((FOLDERS / "mmar-jobs" / "files").rglob("*.yaml"))
    assert kept <= copies().keys()


def _defaults(name: str) -> Any:
    return yaml.safe_load((FOLDERS / name / "values.yaml").read_text())


def _schema(name: str) -> Any:
    return json.loads((FOLDERS / name / "values.schema.json").read_text())


def _leaves(value: Any, schema: Any, whole: Any, path: tuple[str, ...] = ()) -> list[Any]:
    """Paths of the values that a user sets: objects whose names the schema lists are not."""
    schema = whole["definitions"][schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema
    named = schema.get("properties")
    if not isinstance(value, dict) or not named or (path and path[0] == "stages" and path[1:]):
        return [path]
    return [
        leaf
        for key, item in value.items()
        for leaf in _leaves(item, named[key], whole, (*path, key))
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_value_is_documented(name: str) -> None:
    """Each has a comment for the README, on itself or on the object that it is part of."""
    documented = {value.path for value in values(FOLDERS / name / "values.yaml")}
    leaves = set(_leaves(_defaults(name), _schema(name), _schema(name)))
    bare = {
        leaf for leaf in leaves if not any(leaf[: i + 1] in documented for i in range(len(leaf)))
    }
    assert set() == bare
    assert all(value.text for value in values(FOLDERS / name / "values.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_every_value_is_read(name: str) -> None:
    """No value without an effect: each name stands in a template."""
    texts = "".join(path.read_text() for path in (FOLDERS / name / "templates").rglob("*.*"))
    for path in _leaves(_defaults(name), _schema(name), _schema(name)):
        assert any(f".{part}" in texts or f'"{part}"' in texts for part in (path[-1], path[0]))


@pytest.mark.parametrize("name", NAMES)
def test_schemas_are_closed_and_say_the_same_as_values(name: str) -> None:
    """Every object refuses unknown names, and every name has a default."""

    def check(schema: Any, value: Any, path: str) -> None:
        if schema.get("type") != "object" or path == ".global":
            return
        assert "additionalProperties" in schema or path in FREE, path
        for key, item in schema.get("properties", {}).items():
            inner = whole["definitions"][item["$ref"].rsplit("/", 1)[1]] if "$ref" in item else item
            if key != "global" and not path.startswith(".stages."):
                assert key in value, f"{path}.{key}"
                check(inner, value[key], f"{path}.{key}")

    whole = _schema(name)
    check(whole, _defaults(name), "")


FREE = {".affinity"}  # Kubernetes' own, checked by its API server


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("mmar-jobs", "stroe=x"),
        ("mmar-jobs", "s3.regoin=x"),
        ("mmar-jobs", "stages.trian.runtimeClassName=x"),
        ("mmar-jobs", "stages.train.resuorces=x"),
        ("mmar-jobs", "store=/tmp/x"),
        ("mmar-jobs", "s3.endpointUrl=http://user:password@s3"),
        ("vllm", "replicas=2"),
        ("vllm", "initialReplicas=2"),
        ("vllm", "tensorParallel=3"),
        ("vllm", "image.digest=sha256:1"),
        ("vllm", "probes.startupS=60"),
    ],
)
def test_values_that_mean_nothing_are_refused(name: str, setting: str) -> None:
    """A misspelt or impossible value is an error, not a silent default."""
    result = template(name, name, *NEEDED[name], f"--set={setting}")
    assert result.returncode != 0
    assert "don't meet the specifications of the schema" in result.stderr


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("mmar-jobs", [], "store is needed: --set store=s3://bucket/prefix"),
        ("mmar-jobs", ["store=s3://bucket,settings.run-id=x"], "settings.run-id: has a value of"),
        ("vllm", ["tensorParallel=1,gpuMemoryGib=40"], "must be one of 141GiB-tp1"),
        (
            "vllm",
            ["engine.extraArgs={--tensor-parallel-size=4}"],
            "would contradict tensorParallel",
        ),
    ],
)
def test_contradictions_are_explained(name: str, settings: list[str], message: str) -> None:
    """What the schema cannot see, the template says in one line with what to do."""
    result = template(name, name, *(f"--set={setting}" for setting in settings))
    assert result.returncode != 0
    assert message in result.stderr


def _named(case: str, kind: str, name: str) -> Object:
    [found] = [
        item for item in rendered(case) if (item["kind"], item["metadata"]["name"]) == (kind, name)
    ]
    return found


def test_settings_are_settings() -> None:
    """Each default is a flag of some stage, under the variable that settings.py reads."""
    flags = {line.split()[1] for line in FLAGS.read_text().splitlines()}
    data = _named("mmar-jobs-default", "ConfigMap", "mmar-jobs-settings")["data"]
    for name, value in _defaults("mmar-jobs")["settings"].items():
        assert f"--{name}" in flags
        variable = "MMAR_" + name.replace(".", "__").replace("-", "_").upper()
        assert str(value) == data[variable]


def test_packaged_jobs_differ_only_where_values_say() -> None:
    """With default values a packaged Job is the source with tags on its images."""
    data = _named("mmar-jobs-default", "ConfigMap", "mmar-jobs-jobs")["data"]
    packaged = jobs() | benches()
    assert {f"{stage}.yaml" for stage in packaged} == data.keys()
    for stage, job in packaged.items():
        expected = copy.deepcopy(job)
        [container] = expected["spec"]["template"]["spec"]["containers"]
        container["image"] += ":0.1.0"
        assert expected == yaml.safe_load(data[f"{stage}.yaml"])


def test_values_reach_the_packaged_jobs() -> None:
    """Nodes, runtime, pull secrets and Kueue's queue, each on the Jobs that it is for."""
    data = _named("mmar-jobs-all", "ConfigMap", "mmar-jobs-jobs")["data"]
    train, ingest = (yaml.safe_load(data[f"{stage}.yaml"]) for stage in ("train", "ingest"))
    pod = train["spec"]["template"]["spec"]
    assert ({"gpu": "a100"}, "nvidia") == (pod["nodeSelector"], pod["runtimeClassName"])
    assert "nodeSelector" not in ingest["spec"]["template"]["spec"]
    for job, queue in ((train, "gpu"), (ingest, "cpu")):
        assert [{"name": "registry"}] == job["spec"]["template"]["spec"]["imagePullSecrets"]
        assert queue == job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]


def test_workflow_templates_take_this_releases_images() -> None:
    """Every pod of a workflow runs the chart's image, and Argo's braces survive."""
    found = [item for item in rendered("mmar-jobs-eks") if item["kind"] == "WorkflowTemplate"]
    assert library().keys() == {item["metadata"]["name"] for item in found}
    leaves = [leaf for item in found for leaf in item["spec"]["templates"] if "container" in leaf]
    for leaf in leaves:
        assert "registry.example/mmar-jobs/cpu:0.1.0" == leaf["container"]["image"]
        assert any("={{workflow.parameters." in word for word in leaf["container"]["args"])


@pytest.mark.parametrize("case", [case for case, (chart, _, _) in CASES.items() if chart == "vllm"])
def test_gpus_follow_from_tensor_parallelism(case: str) -> None:
    """Each server has the GPUs that its options spread it over, and a port of its own."""
    [server] = [item for item in rendered(case) if item["kind"] == "StatefulSet"]
    [service] = [item for item in rendered(case) if item["kind"] == "Service"]
    containers = server["spec"]["template"]["spec"]["containers"]
    assert len(containers) == len(service["spec"]["ports"])
    for index, container in enumerate(containers):
        args = container["args"]
        size = args[args.index("--tensor-parallel-size") + 1]
        assert size == container["resources"]["limits"]["nvidia.com/gpu"]
        assert size == container["resources"]["requests"]["nvidia.com/gpu"]
        assert f"--port={8000 + index}" in args
        assert 8000 + index == container["ports"][0]["containerPort"]
        assert 8000 + index == service["spec"]["ports"][index]["port"]
        budget_s = container["startupProbe"]["failureThreshold"] * 10
        assert 1800 <= budget_s


def test_shared_memory_is_counted_in_the_limit() -> None:
    """A server's limit is its memory and its tmpfs."""
    [server] = [item for item in rendered("vllm-default") if item["kind"] == "StatefulSet"]
    pod = server["spec"]["template"]["spec"]
    sizes = {
        volume["name"]: volume["emptyDir"]["sizeLimit"]
        for volume in pod["volumes"]
        if volume["name"].startswith("shm-")
    }
    assert {"shm-0": "8Gi", "shm-1": "8Gi"} == sizes
    assert all("72Gi" == item["resources"]["limits"]["memory"] for item in pod["containers"])


def test_the_init_container_calls_a_command_that_exists() -> None:
    """With flags that it knows, and the variables that `cluster scale` writes for it."""
    [server] = [item for item in rendered("vllm-default") if item["kind"] == "StatefulSet"]
    [init] = server["spec"]["template"]["spec"]["initContainers"]
    command, *flags = init["args"]
    assert command in COMMANDS
    known = {line.split()[1] for line in FLAGS.read_text().splitlines() if line.startswith(command)}
    assert {flag.partition("=")[0] for flag in flags} <= known
    variables = {env["name"] for env in init["env"]} - {"HOME"}
    assert {"MMAR_RUN_ID", "MMAR_ITERATION", "MMAR_MODELS"} == variables


def test_live_number_of_pods_is_the_workflows() -> None:
    """Tools that cannot look at the cluster leave the field out where asked to."""
    [server] = [item for item in rendered("vllm-for-others") if item["kind"] == "StatefulSet"]
    assert "replicas" not in server["spec"]
    assert "mmar-jobs/reap" not in server["metadata"]["labels"]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflows_ask_where_the_chart_serves(name: str) -> None:
    """The default addresses are those of a release called vllm with default values."""
    [service] = [item for item in rendered("vllm-default") if item["kind"] == "Service"]
    host = service["metadata"]["name"]
    expected = ",".join(f"http://{host}:{port['port']}" for port in service["spec"]["ports"])
    parameters = declared(workflow(name))
    assert (host, expected) == (parameters["server"]["value"], parameters["servers"]["value"])


def test_the_dashboard_is_json_and_every_panel_has_a_query() -> None:
    """Grafana's sidecar would say nothing of a broken one."""
    found = _named("vllm-all", "ConfigMap", "vllm-2-dashboard")["data"]["vllm.json"]
    panels = json.loads(found)["panels"]
    assert panels
    assert all(target["expr"] for panel in panels for target in panel["targets"])


@pytest.mark.parametrize("name", NAMES)
def test_helm_test_has_a_pod(name: str) -> None:
    """`helm test` does something."""
    pods = [item for item in rendered(f"{name}-default") if item["kind"] == "Pod"]
    assert ["test"] == [item["metadata"]["annotations"]["helm.sh/hook"] for item in pods]
    assert all(pod_of(item) for item in pods)
