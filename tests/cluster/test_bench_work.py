"""Tests of benches as Jobs: their names and arguments, and waiting for their workflow."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmar_jobs.bench.cells import parse_cell
from mmar_jobs.cluster.api import Cluster
from mmar_jobs.cluster.bench_work import BenchWork
from mmar_jobs.cluster.jobs import job_of
from mmar_jobs.cluster.wait import WorkflowEnding, wait_for_workflow
from mmar_jobs.errors import DataError, ExitCode, TryAgain
from tests.cluster.fake_api import FakeApi, write_kubeconfig
from tests.cluster.things import template, with_condition

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RUN = "bench-0123456789ab"


def test_a_bench_is_named_by_commit_and_cell() -> None:
    """The same bench of a commit is the same Job; other flags are another."""
    names = {
        BenchWork(parse_cell(text), RUN, COMMIT, "cpu").name
        for text in ("filter", " filter", "filter --candidates 9")
    }
    assert 2 == len(names)
    assert all(name.startswith(f"{RUN}-") and len(name) <= 63 for name in names)


def test_a_bench_is_one_argument_of_its_job() -> None:
    """Whatever its flags are, they reach `bench record` as they were written."""
    work = BenchWork(parse_cell("filter --candidates '5 0'"), RUN, COMMIT, "gpu")
    job = job_of(template("bench-gpu"), work, image="i@sha256:0", flags=["--image", "i@sha256:0"])
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert ["bench", "record", "filter --candidates '5 0'"] == container["args"][:3]
    assert ["--commit", COMMIT, "--image", "i@sha256:0"] == container["args"][3:]
    assert "bench-gpu" == job["metadata"]["labels"]["mmar-jobs/stage"]
    assert RUN == job["metadata"]["labels"]["mmar-jobs/run-id"]


def cluster_command(
    cluster: Cluster, folder: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run `mmar-jobs cluster`: a process, since the client reads its environment once."""
    write_kubeconfig(cluster, folder / "kubeconfig")
    return subprocess.run(
        [sys.executable, "-m", "mmar_jobs", "cluster", *arguments],
        env=os.environ | {"KUBECONFIG": str(folder / "kubeconfig")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_run_bench_makes_the_job_of_its_node_and_waits(
    api: FakeApi, cluster: Cluster, tmp_path: Path
) -> None:
    """The command as a workflow calls it, against a controller that completes what it sees."""
    for label in ("bench-cpu", "bench-gpu"):
        (tmp_path / f"{label}.yaml").write_text(yaml.safe_dump(template(label)))

    def complete() -> None:
        for _, _, job in api.after(0, "jobs", 30):
            api.put("jobs", with_condition(job, "Complete"))

    controller = threading.Thread(target=complete)
    controller.start()
    flags = ["--commit", COMMIT, "--on", "gpu", "--image", "i@sha256:0", "--jobs", str(tmp_path)]
    done = cluster_command(cluster, tmp_path, "run-bench", "train --steps 6", *flags)
    controller.join()
    assert 0 == done.returncode, done.stderr
    [job] = api.objects["jobs"].values()
    assert "bench-gpu" == job["metadata"]["labels"]["mmar-jobs/stage"]
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert ("i@sha256:0", "train --steps 6") == (container["image"], container["args"][2])


def pod(name: str, phase: str, finished: str, **outputs: Any) -> dict[str, Any]:
    """A node of a workflow's status."""
    code = {"exitCode": outputs.pop("code")} if "code" in outputs else {}
    parameters = [{"name": key, "value": value} for key, value in outputs.items()]
    return {
        "type": "Pod",
        "name": f"w1{name}",
        "phase": phase,
        "finishedAt": f"2026-01-01T00:00:{finished}Z",
        "message": f"{name} says so",
        "outputs": {**code, "parameters": parameters},
    }


def put(api: FakeApi, phase: str, *nodes: dict[str, Any], name: str = "w1") -> None:
    """The run's workflow as it is now."""
    labels = {"mmar-jobs/run-id": RUN}
    status = {"phase": phase, "nodes": {str(i): node for i, node in enumerate(nodes)}}
    api.put("workflows", {"metadata": {"name": name, "labels": labels}, "status": status})


def wait(cluster: Cluster, deadline_s: float = 10) -> WorkflowEnding:
    """For that workflow, impatiently."""
    return wait_for_workflow(cluster, RUN, deadline_s=deadline_s, look_s=0.01)


def test_a_verdict_is_the_code_of_the_pod_that_failed(api: FakeApi, cluster: Cluster) -> None:
    """A cell that failed and was passed over does not count; the table comes out all the same."""
    cell = pod("measure", "Failed", "01", code="3")
    verdict = pod("judge", "Failed", "02", code="4", table="### Worse", empty="")
    steps = {"type": "Steps", "phase": "Failed", "message": "child failed"}
    put(api, "Failed", verdict, steps, cell)
    expected = WorkflowEnding(ExitCode.PROMOTION_REFUSED, "judge says so", {"table": "### Worse"})
    assert expected == wait(cluster)


def test_what_an_exit_handler_could_not_do_is_not_the_reason(
    api: FakeApi, cluster: Cluster
) -> None:
    """A report of nothing fails after what ended the workflow; alone it is the reason."""
    report = pod(".onExit[0].report(0)", "Failed", "02", code="2")
    put(api, "Failed", pod("[0].ingest(0)", "Failed", "01", code="3"), report)
    assert ExitCode.DATA is wait(cluster).code
    put(api, "Failed", report)
    assert ExitCode.SETTINGS is wait(cluster).code


def test_success_is_success_whatever_was_retried(api: FakeApi, cluster: Cluster) -> None:
    """Of one parameter the last pod's value counts."""
    first = pod("judge", "Error", "01", table="half")
    second = pod("judge", "Succeeded", "02", code="0", table="whole")
    put(api, "Succeeded", second, first)
    assert (ExitCode.DONE, {"table": "whole"}) == (wait(cluster).code, wait(cluster).outputs)


@pytest.mark.parametrize("outputs", [{}, {"code": "137"}])
def test_a_lost_pod_is_tried_again(api: FakeApi, cluster: Cluster, outputs: dict[str, str]) -> None:
    """Without an exit code of this project nothing was said about the commit."""
    put(api, "Error", pod("judge", "Error", "01", **outputs))
    assert ExitCode.TRY_AGAIN is wait(cluster).code


def test_the_newest_workflow_of_a_run_is_waited_for(api: FakeApi, cluster: Cluster) -> None:
    """An earlier one's end says nothing; the wait is bounded and leaves it running."""
    put(api, "Succeeded")
    put(api, "Running", name="w2")
    with pytest.raises(TryAgain, match=r"w2 has not ended after 0 s; it goes on"):
        wait(cluster, 0.05)
    put(api, "Failed", name="w2")
    assert (ExitCode.TRY_AGAIN, "failed") == (wait(cluster).code, wait(cluster).sentence)


def test_a_run_without_a_workflow_is_said(cluster: Cluster) -> None:
    """With the command that starts one."""
    with pytest.raises(DataError, match=f"no workflow of {RUN}: mmar-jobs cluster submit"):
        wait(cluster)


def test_wait_writes_outputs_and_ends_like_the_verdict(
    api: FakeApi, cluster: Cluster, tmp_path: Path
) -> None:
    """A file an output, then exit 4 with the pod's words."""
    put(api, "Failed", pod("judge", "Failed", "02", code="4", table="### Worse"))
    outputs = tmp_path / "outputs"
    done = cluster_command(cluster, tmp_path, "wait", RUN, "--outputs", str(outputs))
    assert (4, "### Worse") == (done.returncode, (outputs / "table").read_text())
    assert f"{RUN} failed: judge says so" in done.stderr
