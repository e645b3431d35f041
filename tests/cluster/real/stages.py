"""The Jobs of k8s/, fitted to a node without images: Python and this project from the machine.

As an overlay of kustomize would, it changes where the program comes from, how much is asked for,
and where the model lies; identity, security context and policies stay as they are.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from mmar_jobs.tiny import tiny_model_folder
from tests.cluster.real.images import BASE
from tests.cluster.real.namespace import ROOT, Namespace

Object = dict[str, Any]
STAGES = ROOT / "k8s/jobs"
BENCHMARK = ROOT / "k8s/benchmark"
PORT = 8000


def _folders() -> list[Path]:
    """What Python needs of this machine, without what lies within another."""
    wanted = {
        Path(name).resolve() for name in (sys.prefix, sys.base_prefix, ROOT, "/usr", "/lib64")
    }
    wanted |= {Path("/lib"), Path("/lib64")}
    return sorted(path for path in wanted if not any(other in path.parents for other in wanted))


def fitted_jobs(namespace: Namespace, source: Path = STAGES, **changes: Any) -> Path:
    """A folder of manifests for `--jobs`; `changes` to the limits of each container."""
    target = namespace.folder / "jobs"
    target.mkdir()
    models = namespace.folder / "models"
    shutil.copytree(tiny_model_folder(), models / "base")
    for path in sorted(source.glob("*.yaml")):
        job = yaml.safe_load(path.read_text())
        if job["kind"] == "Job":
            _fit(job, models, changes)
            (target / path.name).write_text(yaml.safe_dump(job))
    return target


def _fit(job: Object, models: Path, limits: Object) -> None:
    pod = job["spec"]["template"]["spec"]
    del pod["priorityClassName"]
    pod.pop("nodeSelector", None)
    pod.pop("tolerations", None)
    [container] = pod["containers"]
    container |= {
        "image": BASE,
        "command": [sys.executable, "-m", "mmar_jobs"],
        "resources": {"requests": {"cpu": "100m"}, "limits": {"memory": "4Gi"} | limits},
    }
    _mount_machine(pod, container)
    for volume in pod["volumes"]:
        if volume["name"] == "model":
            del volume["persistentVolumeClaim"]
            volume["hostPath"] = {"path": str(models)}


def _mount_machine(pod: Object, container: Object) -> None:
    """Python, what it needs, and this project, as they are on the machine."""
    own = {"PYTHONPATH": str(ROOT), "HOME": "/tmp", "USER": "stage", "OMP_NUM_THREADS": "1"}  # noqa: S108 - the pod's
    container["env"] = [{"name": name, "value": value} for name, value in own.items()]
    for number, folder in enumerate(_folders()):
        mount = {"name": f"host-{number}", "mountPath": str(folder), "readOnly": True}
        container["volumeMounts"].append(mount)
        pod["volumes"].append({"name": mount["name"], "hostPath": {"path": str(folder)}})


def server(replicas: int = 0) -> Object:
    """A StatefulSet like that of charts/vllm, whose pod serves nothing."""
    labels = {"app": "vllm"}
    pod = {
        "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "vllm", "image": BASE, "imagePullPolicy": "IfNotPresent"}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "vllm", "labels": labels | {"mmar-jobs/reap": "true"}},
        "spec": {
            "replicas": replicas,
            "serviceName": "vllm",
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def answering_server(models: Path) -> tuple[Object, Object]:
    """Such a StatefulSet whose pod answers with the base, and the Service by whose name."""
    found = server(replicas=1)
    pod = found["spec"]["template"]["spec"]
    [container] = pod["containers"]
    container |= {
        "command": [
            sys.executable,
            "-m",
            "tests.cluster.real.serving_pod",
            "/models/base",
            str(PORT),
        ],
        "readinessProbe": {"httpGet": {"path": "/health", "port": PORT}, "periodSeconds": 1},
        "volumeMounts": [{"name": "models", "mountPath": "/models", "readOnly": True}],
    }
    pod["volumes"] = [{"name": "models", "hostPath": {"path": str(models)}}]
    _mount_machine(pod, container)
    service = {
        "metadata": {"name": "vllm"},
        "spec": {"clusterIP": "None", "selector": {"app": "vllm"}, "ports": [{"port": PORT}]},
    }
    return found, service
