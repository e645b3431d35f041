"""Tests of both charts with the real Helm, in a namespace as k8s/base makes it.

The images are stand-ins (stand_in/): accounts, admission, volumes, probes and hooks are real.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.real.images import STAND_IN
from tests.cluster.real.namespace import Namespace, bucket_uri
from tests.deploy.charts import tool
from tests.deploy.manifests import CHARTS, ROOT, jobs, read

IMAGE, _, TAG = STAND_IN.partition(":")
OURS = (
    f"--set=store={bucket_uri('store')},s3.credentials=secret,s3.endpointUrl=http://10.222.0.1:7070",
    *(
        f"--set-string=images.{name}.repository={IMAGE},images.{name}.tag={TAG}"
        for name in ("cpu", "train")
    ),
)
# The smallest server that has all of it: two containers of two GPUs, and a claim for the cache.
VLLM = (
    f"--set-string=image.repository={IMAGE},image.tag={TAG},initImage.repository={IMAGE},initImage.tag={TAG}",
    "--set=initialReplicas=0,cache.type=claim,cache.size=1Gi,engine.drainS=1",
    "--set=resources.cpu=50m,resources.memoryGib=1,resources.shmGibPerGpu=1,resources.mergeGib=1",
    "--set=priorityClassName=mmar-jobs-gpu",
)
BASE_KINDS = {
    "ResourceQuota": "resourcequotas",
    "LimitRange": "limitranges",
    "NetworkPolicy": "networking.k8s.io/v1/networkpolicies",
}


@pytest.fixture
def restricted(namespace: Namespace) -> Iterator[Namespace]:
    """The namespace as `kubectl apply -k k8s/base` and the model's claim leave it."""
    base = ROOT / "k8s/base"
    [about] = read(base / "namespace.yaml")
    labels = {"metadata": {"labels": about["metadata"]["labels"]}}
    assert namespace.ask("PATCH", f"/api/v1/namespaces/{namespace.name}", labels).is_success
    for item in read(base / "priority-classes.yaml"):
        made = namespace.ask("POST", "/apis/scheduling.k8s.io/v1/priorityclasses", item)
        assert made.status_code in (201, 409), made.text
    for name in ("quota", "limit-range", "default-deny"):
        for item in read(base / f"{name}.yaml"):
            namespace.make(BASE_KINDS[item["kind"]], item)
    for item in read(ROOT / "k8s/model/claim.yaml"):
        namespace.make("persistentvolumeclaims", item)
    model = namespace.folder / "volume" / "base"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    cache = namespace.folder / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    volumes = [
        _volume(namespace, "mmar-jobs-model", model.parent),
        _volume(namespace, "vllm-cache", cache),
    ]
    yield namespace
    for volume in volumes:
        namespace.ask("DELETE", f"/api/v1/persistentvolumes/{volume}")


def _volume(namespace: Namespace, claim: str, folder: Path) -> str:
    """A folder of the machine as the volume of one claim."""
    volume = {
        "metadata": {"name": f"{namespace.name}-{claim}"},
        "spec": {
            "capacity": {"storage": "100Gi"},
            "accessModes": ["ReadWriteMany", "ReadWriteOnce"],
            "claimRef": {"namespace": namespace.name, "name": claim},
            "hostPath": {"path": str(folder)},
        },
    }
    made = namespace.ask("POST", "/api/v1/persistentvolumes", volume)
    assert made.is_success, made.text
    return str(made.json()["metadata"]["name"])


def _helm(namespace: Namespace, *arguments: str) -> str:
    done = subprocess.run(
        [tool("helm"), "--namespace", namespace.name, *arguments],
        env=namespace.environment(None),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert 0 == done.returncode, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _everything(namespace: Namespace) -> set[tuple[str, str]]:
    """Kind and name of every object of the namespace but events, whatever kinds there are."""
    groups = [group["preferredVersion"] for group in namespace.ask("GET", "/apis").json()["groups"]]
    roots = ["/api/v1", *(f"/apis/{group['groupVersion']}" for group in groups)]
    found = set()
    for root in roots:
        for kind in namespace.ask("GET", root).json()["resources"]:
            if kind["namespaced"] and "list" in kind["verbs"] and kind["name"] != "events":
                items = namespace.ask("GET", f"{root}/namespaces/{namespace.name}/{kind['name']}")
                found |= {
                    (kind["name"], item["metadata"]["name"]) for item in items.json()["items"]
                }
    return found


def _setting(namespace: Namespace, name: str) -> Any:
    [settings] = [
        item
        for item in namespace.find("configmaps")
        if item["metadata"]["name"] == "mmar-jobs-settings"
    ]
    return settings["data"].get(name)


@pytest.mark.usefixtures("gpus", "argo_kinds")
def test_the_charts_come_change_and_go(restricted: Namespace) -> None:
    """Installed, tested, upgraded and rolled back while a server is up; then nothing is left."""
    before = _everything(restricted)
    ours, vllm = str(CHARTS / "mmar-jobs"), str(CHARTS / "vllm")
    _helm(restricted, "install", "mmar-jobs", ours, *OURS, "--wait", "--timeout=60s")
    _helm(restricted, "install", "vllm", vllm, *VLLM, "--wait", "--timeout=60s")
    _helm(restricted, "test", "mmar-jobs", "--timeout=60s")
    up = ("scale", "vllm", "--replicas=1", "--run-id=r", "--lease-s=600", "--deadline-s=90")
    done = restricted.run(*up, account="scaler")
    assert 0 == done.code, done.err
    [server] = restricted.pods()
    _helm(restricted, "test", "vllm", "--timeout=60s")
    warmer = r"--set=settings.sampling\.temperature=0.9"
    _helm(restricted, "upgrade", "mmar-jobs", ours, *OURS, warmer, "--wait", "--timeout=60s")
    _helm(restricted, "upgrade", "vllm", vllm, *VLLM, "--wait", "--timeout=60s")
    assert "0.9" == _setting(restricted, "MMAR_SAMPLING__TEMPERATURE")
    assert [server["metadata"]["uid"]] == [pod["metadata"]["uid"] for pod in restricted.pods()]
    _helm(restricted, "rollback", "mmar-jobs", "1", "--wait", "--timeout=60s")
    assert _setting(restricted, "MMAR_SAMPLING__TEMPERATURE") is None
    _helm(restricted, "uninstall", "vllm", "--wait", "--timeout=90s")
    _helm(restricted, "uninstall", "mmar-jobs", "--wait", "--timeout=60s")
    restricted.wait_until("nothing is left", lambda: _everything(restricted) == before)


def test_every_pod_is_admitted_under_the_restricted_standard(restricted: Namespace) -> None:
    """Those of all Jobs as they are; a pod that asks for more is refused, so somebody looks."""
    restricted.make("serviceaccounts", {"metadata": {"name": "mmar-jobs-stage"}})
    pods = {stage: job["spec"]["template"]["spec"] for stage, job in jobs().items()}
    refused = {stage: _admission(restricted, spec) for stage, spec in pods.items()}
    assert dict.fromkeys(pods, "") == refused
    [container] = pods["filter"]["containers"]
    root = container | {"securityContext": {"privileged": True}}
    assert 'violates PodSecurity "restricted' in _admission(
        restricted, pods["filter"] | {"containers": [root]}
    )


def _admission(namespace: Namespace, spec: dict[str, Any]) -> str:
    """Why the API server would refuse the pod; empty where it would not."""
    pod = {"metadata": {"generateName": "p-"}, "spec": spec}
    path = f"/api/v1/namespaces/{namespace.name}/pods?dryRun=All"
    response = namespace.ask("POST", path, pod)
    return "" if response.is_success else str(response.json()["message"])
