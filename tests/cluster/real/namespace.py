"""A namespace of the real cluster for one test, and the commands that a person types there."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from mmar_jobs.cluster.jobs import STAGE_LABEL
from tests.cluster.real.node import Node
from tests.cluster.real.s3 import BUCKET, KEYS, REGION, URL

ROOT = Path(__file__).parent.parent.parent.parent
Object = dict[str, Any]


@dataclass
class Namespace:
    """One namespace; everything in it goes with it."""

    node: Node
    name: str
    folder: Path
    programs: list[subprocess.Popen[str]] = field(default_factory=list)

    def ask(self, method: str, path: str, body: Object | None = None) -> httpx2.Response:
        """As the cluster's admin."""
        return self.node.ask(method, path, body)

    def make(self, path: str, thing: Object) -> Object:
        """Create an object; `path` is its plural, after its API group if it has one."""
        response = self.ask("POST", self._path(path), thing)
        assert response.is_success, response.text
        found: Object = response.json()
        return found

    def find(self, path: str) -> list[Object]:
        """All objects of a kind."""
        items: list[Object] = self.ask("GET", self._path(path)).json()["items"]
        return items

    def _path(self, path: str) -> str:
        parts = path.split("/")
        is_core = len(parts) == 1 or parts[0] == "serviceaccounts"
        root = "/api/v1" if is_core else f"/apis/{parts.pop(0)}/{parts.pop(0)}"
        return f"{root}/namespaces/{self.name}/{'/'.join(parts)}"

    def delete(self, path: str, name: str, **body: Any) -> None:
        """Delete one object."""
        response = self.ask("DELETE", f"{self._path(path)}/{name}", body)
        assert response.is_success, response.text

    def patch(self, path: str, name: str, change: Object) -> None:
        """Merge a change into one object."""
        response = self.ask("PATCH", f"{self._path(path)}/{name}", change)
        assert response.is_success, response.text

    def pods(self) -> list[Object]:
        """All pods, oldest first."""
        return sorted(self.find("pods"), key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def running(self, stage: str) -> list[Object]:
        """Pods of a stage that run, oldest first; also those that are being deleted."""
        return [
            pod
            for pod in self.pods()
            if pod["metadata"]["labels"].get(STAGE_LABEL) == stage
            and pod["status"]["phase"] == "Running"
        ]

    def log(self, pod: str) -> str:
        """What a pod's container has said so far."""
        return self.ask("GET", f"{self._path('pods')}/{pod}/log").text

    def phases(self) -> list[str]:
        """Of all pods, oldest first."""
        return [str(pod["status"]["phase"]) for pod in self.pods()]

    def add_settings(self, store: str, **settings: str) -> None:
        """What charts/mmar-jobs and an admin provide: the settings, and the keys of S3."""
        data = {"MMAR_STORE": store, "MMAR_ENDPOINT_URL": URL, "AWS_REGION": REGION} | settings
        self.make("configmaps", {"metadata": {"name": "mmar-jobs-settings"}, "data": data})
        self.make("secrets", {"metadata": {"name": "mmar-jobs-s3"}, "stringData": KEYS})

    def environment(self, account: str | None) -> dict[str, str]:
        """Of the admin, or of who has the token of a service account of the chart."""
        name, token = f"mmar-jobs-{account}", None
        if account is not None:
            request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"}
            token = self.make(f"serviceaccounts/{name}/token", request)["status"]["token"]
        user = "admin" if account is None else f"{self.name}-{account}"
        config = self.node.kubeconfig(user, token=token, namespace=self.name)
        return os.environ | {"KUBECONFIG": str(config), "PYTHONPATH": str(ROOT)}

    def start(self, *arguments: str, account: str | None = None) -> subprocess.Popen[str]:
        """Start `mmar-jobs cluster …`, to be waited for."""
        program = subprocess.Popen(
            [sys.executable, "-m", "mmar_jobs", "cluster", *arguments],
            env=self.environment(account),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
        )
        self.programs.append(program)
        return program

    def run(self, *arguments: str, account: str | None = None) -> "Said":
        """Run `mmar-jobs cluster …` to its end."""
        return said(self.start(*arguments, account=account))

    def wait_until(self, what: str, is_so: Any, timeout_s: float = 60) -> None:
        """Wait for something that the cluster does by itself."""
        end = time.monotonic() + timeout_s
        while not is_so():
            assert time.monotonic() < end, f"not within {timeout_s:.0f} s: {what}"
            time.sleep(0.2)

    def close(self) -> None:
        """End what was started; the cluster removes the rest by itself."""
        for program in self.programs:
            if program.poll() is None:
                program.kill()
                program.communicate()
        self.ask("DELETE", f"/api/v1/namespaces/{self.name}")


@dataclass(frozen=True)
class Said:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The last line on standard error."""
        return self.err.strip().splitlines()[-1] if self.err.strip() else ""

    def events(self, name: str) -> list[Object]:
        """Log lines of one name."""
        lines = [json.loads(line) for line in self.err.splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]


def said(program: subprocess.Popen[str], timeout_s: float = 240) -> Said:
    """Wait for the end of a command."""
    out, err = program.communicate(timeout=timeout_s)
    return Said(program.returncode, out, err)


def shell_job(script: str, *, stage: str = "filter", **spec: Any) -> Object:
    """A manifest like those of k8s/jobs whose stage is a line of shell."""
    container: Object = {
        "name": "stage",
        "image": "mmar-jobs.test/base:1",
        "command": ["/bin/sh", "-c", script],
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    container |= spec.pop("container", {})
    rules = [
        {
            "action": "FailJob",
            "onExitCodes": {"containerName": "stage", "operator": "In", "values": [1, 2, 3, 4]},
        },
        {
            "action": "Ignore",
            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
        },
    ]
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 5,
        "containers": [container],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": stage, "labels": {"mmar-jobs/stage": stage}},
        "spec": {
            "backoffLimit": spec.pop("backoffLimit", 0),
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": rules},
            "template": {"spec": pod | spec},
        },
    }


def bucket_uri(prefix: str) -> str:
    """An address in the tests' bucket."""
    return f"s3://{BUCKET}/{prefix}"


def arguments(stage: str, run_id: str, job: Path, *more: str) -> Sequence[str]:
    """Of run-job for a manifest of a test."""
    return ("run-job", stage, "--run-id", run_id, "--job", str(job), *more)
