"""Tests of what each account of charts/mmar-jobs may do, asked of a real API server."""

import subprocess
from typing import Any

import pytest
import yaml

from tests.cluster.real.namespace import Namespace, shell_job
from tests.cluster.real.stages import server
from tests.deploy.charts import tool
from tests.deploy.manifests import CHARTS

KINDS = {
    "ServiceAccount": "serviceaccounts",
    "Role": "rbac.authorization.k8s.io/v1/roles",
    "RoleBinding": "rbac.authorization.k8s.io/v1/rolebindings",
}
RUNNER, SCALER, SUBMITTER, REAPER, STAGE, WORKFLOW = (
    *("runner", "scaler", "submitter", "reaper", "stage", "workflow"),
)
ALL = (RUNNER, SCALER, SUBMITTER, REAPER, STAGE, WORKFLOW)
# Verb, group, resource, name: the accounts that may. Nobody else may.
TABLE: list[tuple[str, str, str, str, tuple[str, ...]]] = [
    ("create", "batch", "jobs", "", (RUNNER,)),
    ("patch", "batch", "jobs", "", (RUNNER,)),
    ("delete", "batch", "jobs", "", (RUNNER,)),
    ("list", "batch", "jobs", "", (RUNNER, SUBMITTER)),
    ("get", "", "pods/log", "", (RUNNER, SUBMITTER)),
    ("delete", "", "pods", "", ()),
    ("create", "", "pods", "", ()),
    ("create", "", "pods/exec", "", ()),
    ("create", "", "pods/eviction", "", ()),
    ("get", "", "secrets", "", ()),
    ("list", "", "secrets", "", ()),
    ("get", "", "secrets", "mmar-jobs-s3", ()),
    ("patch", "apps", "statefulsets", "vllm", (SCALER, REAPER)),
    ("patch", "apps", "statefulsets", "another", (REAPER,)),
    ("delete", "apps", "statefulsets", "vllm", ()),
    ("create", "apps", "statefulsets", "", ()),
    ("patch", "", "configmaps", "vllm-model", (SCALER,)),
    ("patch", "", "configmaps", "mmar-jobs-settings", ()),
    ("patch", "", "configmaps", "mmar-jobs-jobs", ()),
    ("create", "", "events", "", (REAPER,)),
    ("create", "argoproj.io", "workflows", "", (SUBMITTER,)),
    ("delete", "argoproj.io", "workflows", "", ()),
    ("create", "argoproj.io", "workflowtaskresults", "", (WORKFLOW, RUNNER, SCALER)),
    ("create", "rbac.authorization.k8s.io", "rolebindings", "", ()),
    ("create", "", "serviceaccounts/token", "", ()),
    ("impersonate", "", "serviceaccounts", "", ()),
    ("list", "", "nodes", "", ()),
]


@pytest.fixture
def accounts(namespace: Namespace) -> Namespace:
    """A namespace with the chart's accounts and roles."""
    command = [tool("helm"), "template", "mmar-jobs", str(CHARTS / "mmar-jobs")]
    command += ["--namespace", namespace.name, "--set=store=s3://bucket/prefix"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    for thing in yaml.safe_load_all(done.stdout):
        if thing and thing["kind"] in KINDS:
            namespace.make(KINDS[thing["kind"]], thing)
    return namespace


def _may(
    namespace: Namespace, account: str, verb: str, group: str, resource: str, name: str
) -> bool:
    plural, _, subresource = resource.partition("/")
    attributes = {
        "namespace": namespace.name,
        "verb": verb,
        "group": group,
        "resource": plural,
        "subresource": subresource,
        "name": name,
    }
    user = f"system:serviceaccount:{namespace.name}:mmar-jobs-{account}"
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace.name}"]
    spec = {"user": user, "groups": groups, "resourceAttributes": attributes}
    response = namespace.ask(
        "POST",
        "/apis/authorization.k8s.io/v1/subjectaccessreviews",
        {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec},
    )
    return bool(response.json()["status"]["allowed"])


def test_each_account_may_what_it_needs_and_nothing_else(accounts: Namespace) -> None:
    """A table of who may what: six accounts, each row asked for each."""
    wrong = [
        (account, verb, resource, name)
        for verb, group, resource, name, who in TABLE
        for account in ALL
        if _may(accounts, account, verb, group, resource, name) != (account in who)
    ]
    assert [] == wrong


def test_the_stages_account_may_nothing_at_all(accounts: Namespace) -> None:
    """It reads weights and clips of strangers."""
    assert not [row[:4] for row in TABLE if _may(accounts, STAGE, *row[:4])]


def test_run_job_needs_no_more_than_its_account_has(accounts: Namespace) -> None:
    """A whole Job with the token of mmar-jobs-runner."""
    job = accounts.folder / "job.yaml"
    job.write_text(yaml.safe_dump(shell_job("echo hello")))
    done = accounts.run("run-job", "filter", "--run-id=r", f"--job={job}", account=RUNNER)
    assert (0, "hello\n") == (done.code, done.out), done.err


def test_a_server_is_scaled_and_reaped_by_its_accounts(accounts: Namespace) -> None:
    """Up under a lease; nobody takes it down, so the reaper does once the lease is over."""
    accounts.make("apps/v1/statefulsets", server())
    up = ("scale", "vllm", "--replicas=1", "--run-id=r", "--lease-s=3600", "--deadline-s=60")
    done = accounts.run(*up, account=SCALER)
    assert 0 == done.code, done.err
    other = accounts.run(*(up[:3]), "--run-id=q", account=SCALER)
    assert (75, True) == (other.code, "works for run r until" in other.last), other.err
    assert 0 == accounts.run("reap", account=REAPER).events("reap_finished")[0]["num_stopped"]
    assert ["Running"] == accounts.phases()
    short = (*up[:4], "--lease-s=1", "--deadline-s=60")
    assert 0 == accounts.run(*short, account=SCALER).code
    reaped = accounts.run("reap", account=REAPER)
    assert 1 == reaped.events("reap_finished")[0]["num_stopped"], reaped.err
    accounts.wait_until("no pod is left", lambda: not accounts.pods())
    events = accounts.find("events")
    assert 1 == len([event for event in events if event["reason"] == "LeaseOver"])
    status: Any = accounts.run("status", "r", account=SUBMITTER)
    assert (0, True) == (status.code, "server vllm" in status.out), status.err
