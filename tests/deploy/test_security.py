"""Tests over every pod of k8s/, argo/ and charts/: what it may do, and whom it may talk to."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deploy.charts import KUBERNETES, rendered, rendered_text, tool
from tests.deploy.manifests import (
    ARGO,
    ROOT,
    Object,
    benches,
    events,
    events_pod,
    jobs,
    offline,
    pod_of,
    read,
    read_one,
    strings,
)
from tests.deploy.workflows import templates

K8S = ROOT / "k8s"
CASES = ("mmar-jobs-all", "mmar-jobs-default", "vllm-default", "vllm-for-others")
# Pods that talk to the API server; all others get no token.
WITH_TOKEN = {"mmar-jobs-runner", "mmar-jobs-scaler", "mmar-jobs-reaper", "mmar-jobs-submitter"}
# NVIDIA's runtime writes into the root file system of containers with GPUs.
GPU = "nvidia.com/gpu"


@cache
def pods() -> dict[str, Object]:
    """Every pod that this project makes, as metadata and spec, by name."""
    found = {f"job/{stage}": job["spec"]["template"] for stage, job in (jobs() | benches()).items()}
    found |= {f"offline/{stage}": job["spec"]["template"] for stage, job in offline().items()}
    found["job/download"] = read_one(K8S / "model" / "download.yaml")["spec"]["template"]
    for (home, name), leaf in templates().items():
        if leaf.is_leaf:
            body = leaf.body
            spec = {
                "containers": [body["container"] | {"name": "main"}],
                **{key: body[key] for key in ("securityContext", "serviceAccountName", "volumes")},
            }
            found[f"argo/{home}/{name}"] = {"metadata": body["metadata"], "spec": spec}
    for item in events():
        pod = events_pod(item)
        if pod is not None:
            found[f"events/{item['kind']}"] = pod
    for case in CASES:
        for item in rendered(case):
            pod = pod_of(item)
            if pod is not None:
                found[f"{case}/{item['kind']}/{item['metadata']['name']}"] = pod
    return found


@pytest.fixture(
    params=[
        *(f"job/{stage}" for stage in jobs() | benches()),
        *(f"offline/{stage}" for stage in offline()),
        *("job/download", "argo", "charts", "events"),
    ]
)
def group(request: pytest.FixtureRequest) -> dict[str, Object]:
    """The pods of one source."""
    tool("helm")
    if request.param == "charts":
        return {name: pod for name, pod in pods().items() if name.startswith(CASES)}
    return {name: pod for name, pod in pods().items() if name.startswith(request.param)}


def _containers(pod: Object) -> Iterator[Object]:
    yield from pod["spec"].get("initContainers", [])
    yield from pod["spec"]["containers"]


def test_pods_satisfy_the_restricted_standard(group: dict[str, Object]) -> None:
    """Each rule of Pod Security `restricted` that a manifest can break."""
    assert group
    allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral"}
    allowed |= {"persistentVolumeClaim", "projected", "secret"}
    for name, pod in group.items():
        spec = pod["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        context = spec["securityContext"]
        assert context["runAsNonRoot"], name
        assert context["runAsUser"] >= 1000, name
        assert {"type": "RuntimeDefault"} == context["seccompProfile"], name
        for volume in spec.get("volumes", []):
            assert volume.keys() - {"name"} <= allowed, name
        for container in _containers(pod):
            inner = container["securityContext"]
            assert inner["allowPrivilegeEscalation"] is False, name
            assert {"drop": ["ALL"]} == inner["capabilities"], name
            assert not {"privileged", "runAsUser", "procMount"} & inner.keys(), name
            assert all("hostPort" not in port for port in container.get("ports", [])), name


def test_what_argo_adds_to_a_pod_satisfies_it_too() -> None:
    """Its `init` and `wait` have a security context only where the leaf's patch gives them one."""
    leaves = [leaf for leaf in templates().values() if leaf.is_leaf]
    assert leaves
    for leaf in leaves:
        patch = yaml.safe_load(leaf.body["podSpecPatch"])
        added = [*patch["initContainers"], *patch["containers"]]
        assert ["init", "wait"] == [container["name"] for container in added], leaf.name
        for container in added:
            context = container["securityContext"]
            assert {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}} == context


def test_only_containers_with_gpus_may_write_to_their_root(group: dict[str, Object]) -> None:
    """All others have a read-only root and a /tmp with a limit."""
    for name, pod in group.items():
        for container in _containers(pod):
            has_gpu = GPU in container["resources"].get("limits", {})
            assert container["securityContext"]["readOnlyRootFilesystem"] is not has_gpu, name
        for volume in pod["spec"].get("volumes", []):
            if "emptyDir" in volume:
                assert "sizeLimit" in volume["emptyDir"], name


def test_every_container_says_what_it_needs(group: dict[str, Object]) -> None:
    """The quota refuses pods without requests, and memory without a limit takes the node down."""
    for name, pod in group.items():
        for container in _containers(pod):
            resources = container["resources"]
            assert {"cpu", "memory"} <= resources["requests"].keys(), name
            assert "memory" in resources["limits"], name
            assert "cpu" not in resources["limits"], f"{name}: a limit only throttles"
            assert not container["image"].endswith((":latest", ":")), name


def test_only_clients_of_the_api_server_have_a_token(group: dict[str, Object]) -> None:
    """Stages and servers, which read foreign files, have none."""
    for name, pod in group.items():
        has_none = pod["spec"].get("automountServiceAccountToken") is False
        assert has_none == (pod["spec"].get("serviceAccountName") not in WITH_TOKEN), name


def test_secrets_are_named_and_never_held(group: dict[str, Object]) -> None:
    """Whatever sounds like a key comes from a Secret that somebody else made."""
    for name, pod in group.items():
        for container in _containers(pod):
            for variable in container.get("env", []):
                if any(word in variable["name"] for word in ("KEY", "TOKEN", "SECRET", "PASSWORD")):
                    assert "secretKeyRef" in variable["valueFrom"], name
            words = [*container.get("command", []), *container.get("args", [])]
            assert not any(word in ("bash", "sh", "/bin/sh", "-lc") for word in words), name


@pytest.mark.parametrize("case", CASES)
def test_charts_make_no_secret(case: str) -> None:
    """A value that is a secret would be in the release's history, for all who may read that."""
    for item in rendered(case):
        assert item["kind"] != "Secret"
        assert not any("AKIA" in text or "BEGIN " in text for text in strings(item))


def _policies() -> list[Object]:
    found = [item for case in CASES for item in rendered(case) if item["kind"] == "NetworkPolicy"]
    events_policies = read(ARGO / "events" / "network-policy.yaml")
    return [*found, read_one(K8S / "model" / "network-policy.yaml"), *events_policies]


def _selects(selector: Any, labels: Object) -> bool:
    exact = selector.get("matchLabels", {})
    listed = selector.get("matchExpressions", [])
    assert all(item["operator"] == "In" for item in listed)
    return exact.items() <= labels.items() and all(
        labels.get(item["key"]) in item["values"] for item in listed
    )


def test_every_pod_has_a_network_policy_for_itself(group: dict[str, Object]) -> None:
    """With the default-deny of k8s/base a pod without one could not even resolve a name."""
    for name, pod in group.items():
        labels = pod["metadata"]["labels"]
        own = [item for item in _policies() if _selects(item["spec"]["podSelector"], labels)]
        assert own, name
        for policy in own:
            assert {"Ingress", "Egress"} == set(policy["spec"]["policyTypes"])


def test_stages_and_servers_meet() -> None:
    """What the stages' policy lets out the servers' policy lets in, on every port."""
    [out] = [
        item
        for item in rendered("mmar-jobs-default")
        if (item["kind"], item["metadata"]["name"]) == ("NetworkPolicy", "mmar-jobs-stage")
    ]
    [into] = [item for item in rendered("vllm-default") if item["kind"] == "NetworkPolicy"]
    [server] = [item for item in rendered("vllm-default") if item["kind"] == "StatefulSet"]
    labels = server["spec"]["template"]["metadata"]["labels"]
    [rule] = [
        rule
        for rule in out["spec"]["egress"]
        if "podSelector" in rule["to"][0] and "namespaceSelector" not in rule["to"][0]
    ]
    assert _selects(rule["to"][0]["podSelector"], labels)
    [port] = rule["ports"]
    for container in server["spec"]["template"]["spec"]["containers"]:
        assert port["port"] <= container["ports"][0]["containerPort"] <= port["endPort"]
    stage = jobs()["generate"]["spec"]["template"]["metadata"]["labels"]
    assert _selects(into["spec"]["ingress"][0]["from"][0]["podSelector"], stage)


def _accounts() -> set[str]:
    made = [*events(), *(item for case in CASES for item in rendered(case))]
    return {item["metadata"]["name"] for item in made if item["kind"] == "ServiceAccount"}


def test_every_account_that_a_pod_names_is_made(group: dict[str, Object]) -> None:
    """Charts, workflows and Jobs agree on the names of accounts."""
    used = {pod["spec"].get("serviceAccountName") for pod in group.values()} - {None}
    assert used <= _accounts()


def test_rights_are_bound_to_accounts_that_exist() -> None:
    """No role stands alone, no binding names somebody else."""
    for case in CASES:
        kinds: dict[str, list[Object]] = {"Role": [], "RoleBinding": [], "ServiceAccount": []}
        for item in rendered(case):
            kinds.get(item["kind"], []).append(item)
        roles = {item["metadata"]["name"] for item in kinds["Role"]}
        assert roles == {item["roleRef"]["name"] for item in kinds["RoleBinding"]}
        bound = {subject["name"] for item in kinds["RoleBinding"] for subject in item["subjects"]}
        accounts = {item["metadata"]["name"] for item in kinds["ServiceAccount"]}
        assert bound <= accounts
        if bound:
            assert {"mmar-jobs-stage", "mmar-jobs-benchmark"} == accounts - bound


def test_rights_are_narrow() -> None:
    """No wildcard, no Secret, nothing that makes rights or runs in other pods."""
    rules = [
        rule
        for item in rendered("mmar-jobs-all")
        if item["kind"] == "Role"
        for rule in item["rules"]
    ]
    for rule in rules:
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        forbidden = {"secrets", "pods/exec", "pods/attach", "roles", "rolebindings"}
        assert not forbidden & set(rule["resources"])
        assert not {"escalate", "bind", "impersonate", "deletecollection"} & set(rule["verbs"])
        if "patch" in rule["verbs"] and "configmaps" in rule["resources"]:
            assert ["vllm-model", "vllm-2-model"] == rule["resourceNames"]
    kinds = {item["kind"] for case in CASES for item in rendered(case)}
    assert not {"ClusterRole", "ClusterRoleBinding"} & kinds


def test_base_is_valid() -> None:
    """Each object that an administrator applies, by the API server's schemas."""
    paths = [
        path for name in ("base", "model", "benchmark") for path in (K8S / name).glob("*.yaml")
    ]
    items = [item for path in sorted(paths) for item in read(path)]
    for item in items:
        if item["kind"] != "Kustomization":
            kubernetes_validate.validate(item, KUBERNETES, strict=True)
    folders = [K8S / name for name in ("base", "model", "jobs", "benchmark")]
    for folder in (*folders, ARGO / "events"):
        kustomization = read_one(folder / "kustomization.yaml")
        files = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
        assert files == set(kustomization["resources"])


def test_the_namespace_enforces_the_standard() -> None:
    """Not only warns."""
    labels = read_one(K8S / "base" / "namespace.yaml")["metadata"]["labels"]
    assert "restricted" == labels["pod-security.kubernetes.io/enforce"]


def test_the_quota_holds_a_server_or_a_training_and_never_both() -> None:
    """GPUs of the default server fill it; one more does not fit."""
    quota = read_one(K8S / "base" / "quota.yaml")["spec"]["hard"]
    [server] = [item for item in rendered("vllm-default") if item["kind"] == "StatefulSet"]
    containers = server["spec"]["template"]["spec"]["containers"]
    serving = sum(int(item["resources"]["limits"][GPU]) for item in containers)
    [trainer] = jobs()["train"]["spec"]["template"]["spec"]["containers"]
    limit = int(quota[f"requests.{GPU}"])
    assert serving <= limit < serving + int(trainer["resources"]["limits"][GPU])


def test_priority_classes_exist(group: dict[str, Object]) -> None:
    """A pod of an unknown class is refused."""
    known = {item["metadata"]["name"] for item in read(K8S / "base" / "priority-classes.yaml")}
    used = {pod["spec"].get("priorityClassName") for pod in group.values()} - {None}
    assert used <= known


@pytest.mark.parametrize("case", CASES)
def test_no_key_is_given_twice(case: str) -> None:
    """Most readers of YAML take the last one without a word."""

    def check(node: Any) -> None:
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value]
            assert len(set(keys)) == len(keys), keys
            for _, value in node.value:
                check(value)
        elif isinstance(node, yaml.SequenceNode):
            for value in node.value:
                check(value)

    for node in yaml.compose_all(rendered_text(case)):
        check(node)
