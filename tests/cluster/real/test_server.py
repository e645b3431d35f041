"""Tests of a run and its server: lost, left behind, wanted twice, and under wrong clocks."""

import signal
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from mmar_jobs.cluster.lease import LEASE, write
from mmar_jobs.tiny.build import TinyWorld
from tests.cluster.real.clocks import wrong_clock
from tests.cluster.real.loop import RUN_ID, STAGES, Loop
from tests.cluster.real.namespace import ROOT, Namespace, said, shell_job
from tests.cluster.real.s3 import BUCKET, S3
from tests.cluster.real.stages import PORT, answering_server, server

PATIENT = "trap 'exit 75' TERM; echo began; sleep 60 & wait $!"


class Ended(Exception):
    """Somebody ended the workflow."""


@pytest.fixture
def shell_loop(namespace: Namespace, s3: S3, world: TinyWorld) -> Loop:
    """A loop whose stages are lines of shell, ended by somebody while generate runs."""
    jobs = namespace.folder / "jobs"
    jobs.mkdir()
    for stage in STAGES:
        script = PATIENT if stage == "generate" else "true"
        (jobs / f"{stage}.yaml").write_text(yaml.safe_dump(shell_job(script, stage=stage)))
    namespace.make("apps/v1/statefulsets", server())

    def end(stage: str, program: subprocess.Popen[str]) -> None:
        if stage == "generate":
            namespace.wait_until("generate runs", lambda: namespace.running("generate"))
            program.send_signal(signal.SIGTERM)  # as Argo ends the pod that waits for the Job
            assert 75 == said(program).code
            raise Ended

    return Loop(namespace, s3, world, end, jobs=jobs)


def _has_server(namespace: Namespace) -> bool:
    return any(pod["metadata"]["name"] == "vllm-0" for pod in namespace.pods())


def test_a_server_that_dies_in_generation_costs_time_alone(
    namespace: Namespace, s3: S3, world: TinyWorld
) -> None:
    """Its successor is proven and asked for the rest; the candidates are those of a calm run."""
    loop = Loop(namespace, s3, world)
    loop.prepare(MMAR_ENGINE__OUTAGE_S="240")
    namespace.delete("apps/v1/statefulsets", "vllm")
    answering, service = answering_server(namespace.folder / "models")
    namespace.wait_until("it is gone", lambda: not namespace.find("apps/v1/statefulsets"))
    namespace.make("apps/v1/statefulsets", answering)
    namespace.make("services", service)
    assert 0 == loop.run_stage("ingest", *loop.questions)
    asking = f"--engine.servers=http://vllm:{PORT}"

    def kill(stage: str, program: subprocess.Popen[str]) -> None:
        namespace.wait_until("it is asked", lambda: "asked" in namespace.log("vllm-0"), 180)
        namespace.delete("pods", "vllm-0", gracePeriodSeconds=0)

    loop.disturb = kill
    assert 0 == loop.run_stage("generate", asking)
    assert "request_failed" in loop.said["generate"].out
    disturbed = _candidates(s3, loop, forget=True)
    namespace.delete("batch/v1/jobs", f"{RUN_ID}-i1-generate", propagationPolicy="Foreground")
    loop.disturb = lambda stage, program: None
    assert 0 == loop.run_stage("generate", asking)
    assert "request_failed" not in loop.said["generate"].out
    calm = _candidates(s3, loop)
    assert calm
    assert calm == disturbed


def _candidates(s3: S3, loop: Loop, *, forget: bool = False) -> dict[str, bytes]:
    """The shards of candidates; `forget` deletes all that generate has made."""
    prefix = f"{loop.namespace.name}/store/runs/{RUN_ID}/"
    items = s3.client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]
    keys = [item["Key"] for item in items if "/questions/" not in item["Key"]]
    found = {
        key: s3.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        for key in keys
        if not key.endswith("manifest.json")
    }
    for key in keys if forget else ():
        s3.client.delete_object(Bucket=BUCKET, Key=key)
    return found


def test_a_workflow_that_is_stopped_takes_its_server_down(shell_loop: Loop) -> None:
    """Its exit handler does, and a report is written; the Job of the stage is gone."""
    with pytest.raises(Ended):
        shell_loop.submit()
    namespace = shell_loop.namespace
    assert not _has_server(namespace)
    assert 0 == shell_loop.said["report"].code
    namespace.wait_until("the stage is gone", lambda: not namespace.running("generate"))


def test_a_workflow_that_is_terminated_leaves_its_server_to_the_reaper(shell_loop: Loop) -> None:
    """No exit handler runs then: the server stays until its lease is over, and no longer."""
    workflow = shell_loop.workflow()
    with pytest.raises(Ended):
        workflow.run_without_exit()
    namespace = shell_loop.namespace
    assert 0 == namespace.run("reap").events("reap_finished")[0]["num_stopped"]
    assert _has_server(namespace)
    over = write(datetime.now(UTC) - timedelta(seconds=1))
    namespace.patch("apps/v1/statefulsets", "vllm", {"metadata": {"annotations": {LEASE: over}}})
    assert 1 == namespace.run("reap").events("reap_finished")[0]["num_stopped"]
    namespace.wait_until("no server is left", lambda: not _has_server(namespace))


@pytest.mark.usefixtures("argo_kinds")
def test_of_submits_at_one_moment_one_is_taken(namespace: Namespace) -> None:
    """The others are told of it: exit 2."""
    command = ["submit", "r", "--workflow", str(ROOT / "argo/rest-workflow.yaml")]
    command += ["-p", "questions=s3://b/q.jsonl", "-p", "benchmark=s3://b/m.jsonl"]
    programs = [namespace.start(*command) for _ in range(4)]
    ends = [(program.communicate(timeout=120), program.returncode)[1] for program in programs]
    assert [0, 2, 2, 2] == sorted(ends)
    [made] = namespace.find("argoproj.io/v1alpha1/workflows")
    assert "mmar-jobs-rest-r-1" == made["metadata"]["name"]


@pytest.mark.parametrize("skew", ["-3d", "+3d"])
def test_a_wrong_clock_neither_steals_nor_reaps_a_server(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch, skew: str
) -> None:
    """Leases are written and read by the API server's clock, whatever the client's says."""
    namespace.make("apps/v1/statefulsets", server())
    up = ("scale", "vllm", "--replicas=1", "--lease-s=3600", "--deadline-s=90")
    with monkeypatch.context() as wrong:
        _set_clock(wrong, skew)
        mine = namespace.run(*up, "--run-id=r")
        assert 0 == mine.code, mine.err
    [held] = namespace.find("apps/v1/statefulsets")
    until = datetime.fromisoformat(held["metadata"]["annotations"][LEASE])
    assert timedelta(minutes=50) < until - datetime.now(UTC) < timedelta(minutes=61)
    with monkeypatch.context() as wrong:
        _set_clock(wrong, skew)
        other = namespace.run(*up, "--run-id=q")
        assert (75, True) == (other.code, "works for run r until" in other.last), other.err
        assert 0 == namespace.run("reap").events("reap_finished")[0]["num_stopped"]
    assert _has_server(namespace)


def _set_clock(environment: pytest.MonkeyPatch, skew: str) -> None:
    for name, value in wrong_clock(skew).items():
        environment.setenv(name, value)
