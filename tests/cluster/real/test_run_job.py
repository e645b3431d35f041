"""Tests of run-job on a real cluster: what each fault looks like there, and what is said of it."""

import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.real.namespace import Namespace, arguments, said, shell_job

DONE = """echo '{"learned": true, "num_examples": 3}' > /dev/termination-log"""
FINISHED = '{"event": "job_finished", "tokens_per_s": 1234.4}'
# A stage that ends well after some seconds, and as ours do when it is asked to stop.
PATIENT = "trap 'echo asked to stop; exit 75' TERM; echo began; sleep 8 & wait $!; echo ended"


def write(namespace: Namespace, job: dict[str, Any], name: str = "job") -> Path:
    """The manifest as a file."""
    path = namespace.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def await_line(namespace: Namespace, num_pods: int = 1) -> dict[str, Any]:
    """The newest of so many pods, once it runs."""

    def runs() -> bool:
        pods = namespace.pods()
        return len(pods) >= num_pods and pods[-1]["status"]["phase"] == "Running"

    namespace.wait_until("a pod runs", runs)
    return namespace.pods()[-1]


def test_a_job_runs_and_tells_its_outcome(namespace: Namespace) -> None:
    """Its lines come out as they are, its outcome as one file a value; asked again, it is done."""
    job = write(namespace, shell_job(f"echo one; sleep 1; echo two; {DONE}"))
    outputs = namespace.folder / "outputs"
    done = namespace.run(*arguments("filter", "r", job, "--outputs", str(outputs)))
    assert (0, "one\ntwo\n") == (done.code, done.out), done.err
    told = {path.name: path.read_text() for path in outputs.iterdir()}
    assert {"learned": "true", "num_examples": "3"} == told
    again = namespace.run(*arguments("filter", "r", job, "--outputs", str(outputs)))
    assert (0, "done") == (again.code, again.events("job_adopted")[0]["state"])
    assert 1 == len(namespace.pods())


@pytest.mark.parametrize("code", [1, 3, 75])
def test_the_stages_exit_code_is_run_jobs(namespace: Namespace, code: int) -> None:
    """Its last line is there, however soon it ended."""
    job = write(namespace, shell_job(f"echo why >&2; exit {code}"))
    done = namespace.run(*arguments("filter", "r", job))
    assert (code, "why\n") == (done.code, done.out), done.err


def test_a_pod_that_is_deleted_is_replaced(namespace: Namespace) -> None:
    """It had time to end in order; its successor ends the work, and both are shown."""
    job = write(namespace, shell_job(PATIENT, backoffLimit=1))
    program = namespace.start(*arguments("filter", "r", job))
    namespace.delete("pods", await_line(namespace)["metadata"]["name"])
    done = said(program)
    assert 0 == done.code, done.err
    assert ["began", "asked to stop", "began", "ended"] == done.out.splitlines()
    assert 1 == len(done.events("pod_gone"))


def test_an_evicted_pod_does_not_count_as_a_failure(namespace: Namespace) -> None:
    """The node is drained; the Job, which may not fail once, waits for a node and goes on."""
    job = write(namespace, shell_job(PATIENT, backoffLimit=0))
    program = namespace.start(*arguments("filter", "r", job))
    name = await_line(namespace)["metadata"]["name"]
    node = f"/api/v1/nodes/{namespace.node.name}"
    namespace.ask("PATCH", node, {"spec": {"unschedulable": True}})
    try:
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
        path = f"/api/v1/namespaces/{namespace.name}/pods/{name}/eviction"
        assert namespace.ask("POST", path, eviction).is_success
        namespace.wait_until("a pod waits", lambda: namespace.phases()[-1:] == ["Pending"])
        time.sleep(7)  # until the reason is asked for
    finally:
        namespace.ask("PATCH", node, {"spec": {"unschedulable": False}})
    done = said(program)
    assert 0 == done.code, done.err
    assert "waits for a node: 0/1 nodes" in done.events("job_waits")[0]["reason"]


def test_out_of_memory_names_the_limit(namespace: Namespace) -> None:
    """Exit 2: the same command would need as much again."""
    limit = {"resources": {"limits": {"memory": "24Mi"}}}
    job = write(namespace, shell_job("tail /dev/zero", container=limit))
    done = namespace.run(*arguments("filter", "r", job))
    assert (2, True) == (done.code, "memory limit of 24Mi" in done.last), done.err


def test_an_image_that_is_missing_is_named(namespace: Namespace) -> None:
    """Exit 2 after some patience; no pod keeps trying."""
    image = {"image": "mmar-jobs.test/absent:1", "imagePullPolicy": "IfNotPresent"}
    job = write(namespace, shell_job("true", container=image))
    done = namespace.run(*arguments("filter", "r", job, "--patience-s", "4"))
    assert 2 == done.code, done.err
    assert "image mmar-jobs.test/absent:1 cannot be pulled" in done.last
    namespace.wait_until("nothing is left", lambda: not namespace.pods())


def test_a_secret_that_is_missing_is_named_and_may_still_come(namespace: Namespace) -> None:
    """Somebody reads the line and creates it: the Job goes on."""
    needs = {"envFrom": [{"secretRef": {"name": "keys"}}]}
    job = write(namespace, shell_job("echo $KEY", container=needs))
    given_up = namespace.run(*arguments("filter", "r", job, "--patience-s", "4"))
    words = f"needs Secret keys, which namespace {namespace.name} lacks"
    assert (2, True) == (given_up.code, words in given_up.last), given_up.err
    program = namespace.start(*arguments("filter", "r", job))
    time.sleep(5)
    namespace.make("secrets", {"metadata": {"name": "keys"}, "stringData": {"KEY": "came"}})
    done = said(program)
    assert (0, "came\n") == (done.code, done.out), done.err


def test_a_quota_that_is_used_up_is_try_again(namespace: Namespace) -> None:
    """With the numbers."""
    quota = {"metadata": {"name": "few"}, "spec": {"hard": {"pods": "0"}}}
    namespace.make("resourcequotas", quota)
    namespace.wait_until("the quota holds", lambda: namespace.find("resourcequotas")[0]["status"])
    job = write(namespace, shell_job("true"))
    done = namespace.run(*arguments("filter", "r", job, "--patience-s", "3"))
    assert (75, True) == (done.code, "quota is used up (few, requested: pods=1" in done.last), (
        done.err
    )


def test_two_at_once_run_one_job(namespace: Namespace) -> None:
    """Both show its lines and end with its code."""
    job = write(namespace, shell_job(PATIENT))
    programs = [namespace.start(*arguments("filter", "r", job)) for _ in range(2)]
    for program in programs:
        done = said(program)
        assert (0, ["began", "ended"]) == (done.code, done.out.splitlines()), done.err
    assert 1 == len(namespace.pods())


def test_asked_to_stop_it_stops_the_stage(namespace: Namespace) -> None:
    """Exit 75, and nothing goes on in the cluster."""
    job = write(namespace, shell_job(PATIENT))
    program = namespace.start(*arguments("filter", "r", job))
    await_line(namespace)
    program.send_signal(signal.SIGTERM)
    done = said(program)
    assert (75, True) == (done.code, "SIGTERM" in done.last), done.err
    namespace.wait_until("nothing is left", lambda: not namespace.pods())


def test_killed_it_leaves_the_job_to_its_successor(namespace: Namespace) -> None:
    """Which shows all lines from the first."""
    job = write(namespace, shell_job(PATIENT))
    program = namespace.start(*arguments("filter", "r", job))
    await_line(namespace)
    program.kill()
    program.communicate()
    done = namespace.run(*arguments("filter", "r", job))
    assert (0, ["began", "ended"]) == (done.code, done.out.splitlines()), done.err
    assert "running" == done.events("job_adopted")[0]["state"]
    assert 1 == len(namespace.pods())


def test_other_flags_under_the_same_name_are_refused(namespace: Namespace) -> None:
    """Exit 2 with both, while the first goes on."""
    job = write(namespace, shell_job(PATIENT))
    program = namespace.start(*arguments("filter", "r", job))
    await_line(namespace)
    other = namespace.run(*arguments("filter", "r", job, "--", "--filter.top-k=2"))
    assert (2, True) == (other.code, "now filter --run-id r" in other.last), other.err
    assert 0 == said(program).code


def test_gpus_are_used_by_one_job_at_a_time(namespace: Namespace, gpus: int) -> None:
    """A second Job waits for a node, says so, and begins when the first has ended."""
    wants = {"resources": {"limits": {"nvidia.com/gpu": gpus}}}
    script = "date +%s; sleep 6; date +%s"
    first = write(namespace, shell_job(script, container=wants), "first")
    wants = {"resources": {"limits": {"nvidia.com/gpu": 1}}}
    second = write(namespace, shell_job(script, container=wants), "second")
    one = namespace.start(*arguments("filter", "r", first))
    await_line(namespace)
    other = namespace.start(*arguments("filter", "q", second))
    results = [said(one), said(other)]
    assert [0, 0] == [done.code for done in results], results
    assert "Insufficient nvidia.com/gpu" in results[1].events("job_waits")[0]["reason"]
    _, ended, began, _ = (int(t) for done in results for t in done.out.split())
    assert ended <= began


def test_status_and_logs_tell_of_a_run(namespace: Namespace, gpus: int) -> None:
    """One line a stage, its GPU time, and why what failed failed."""
    wants = {"resources": {"limits": {"nvidia.com/gpu": gpus}}}
    good = write(
        namespace, shell_job(f"echo '{FINISHED}'; sleep 4", stage="train", container=wants), "good"
    )
    bad = write(namespace, shell_job("echo broken; exit 3", stage="evaluate"), "bad")
    assert 0 == namespace.run(*arguments("train", "r", good)).code
    assert 3 == namespace.run(*arguments("evaluate", "r", bad)).code
    status = namespace.run("status", "r", "--gpu-hour-price", "3600")
    assert 0 == status.code, status.err
    lines = status.out.splitlines()
    [done] = [line for line in lines if "train 1" in line]
    assert "done" in done
    assert "1,234 tokens/s" in done
    assert [line for line in lines if "evaluate 1" in line and "failed (3)" in line]
    logs = namespace.run("logs", "r")
    texts = [line.partition(" ")[2] for line in logs.out.splitlines()]
    assert [FINISHED, "broken"] == texts
    assert 3 == namespace.run("logs", "nobody").code
    assert 3 == namespace.run("status", "nobody").code
