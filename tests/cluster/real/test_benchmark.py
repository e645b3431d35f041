"""A bench as a Job on a real cluster: measured in a pod, kept in S3, judged by the baseline."""

import json
import os
import subprocess
import sys

import pytest

from mmar_jobs.bench.archive import Archive
from mmar_jobs.bench.cells import parse_cell
from tests.cluster.real.images import BASE
from tests.cluster.real.namespace import ROOT, Namespace, bucket_uri
from tests.cluster.real.s3 import KEYS, REGION, URL
from tests.cluster.real.stages import BENCHMARK, fitted_jobs

COMMITS = ("a" * 40, "b" * 40)
BENCH = "filter --candidates 1600 --repeats 6"
BROKEN = "filter --candidates none"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of S3 for this process too."""
    for name, value in (KEYS | {"AWS_REGION": REGION, "AWS_DEFAULT_REGION": REGION}).items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("environment", "s3")
def test_a_bench_is_measured_kept_and_judged(namespace: Namespace) -> None:
    """Two commits in the Jobs of k8s/benchmark; a bench that fails says why and leaves its log."""
    store = bucket_uri(f"{namespace.name}/store")
    # Of runs, and no bench's: with these the tiny pipeline of a bench could not even start.
    namespace.add_settings(store, MMAR_CONFIG="/nowhere")
    namespace.make("secrets", {"metadata": {"name": "mmar-jobs-benchmark-s3"}, "stringData": KEYS})
    namespace.make("serviceaccounts", {"metadata": {"name": "mmar-jobs-benchmark"}})
    jobs = fitted_jobs(namespace, BENCHMARK)
    archive = Archive.at(store, endpoint_url=URL)

    def run_bench(text: str, commit: str) -> int:
        done = namespace.run("run-bench", text, "--commit", commit, "--jobs", str(jobs))
        return done.code

    assert 2 == run_bench(BROKEN, COMMITS[0])
    log = archive.store.read(f"{COMMITS[0]}/{parse_cell(BROKEN).key}.log")
    assert b"'none' is no whole number" in log
    for commit in COMMITS:
        assert 0 == run_bench(BENCH, commit)
    archive.move_baseline(COMMITS[0])
    # The same program on one busy machine: worse only where it took twice as long.
    flags = ["--commit", COMMITS[1], "--min-change", "0.9", "--store", store]
    flags += ["--cells", json.dumps([{"bench": BENCH}]), "--endpoint-url", URL]
    judged = subprocess.run(
        [sys.executable, "-m", "mmar_jobs", "bench", "judge", *flags],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert 0 == judged.returncode, judged.stdout + judged.stderr
    assert "| filter/candidates_per_s |" in judged.stdout


def test_pods_are_timed_until_they_are_ready(namespace: Namespace) -> None:
    """Each took some time and no minute, under the restricted standard, and none is left."""
    label = {"pod-security.kubernetes.io/enforce": "restricted"}
    path = f"/api/v1/namespaces/{namespace.name}"
    assert namespace.ask("PATCH", path, {"metadata": {"labels": label}}).is_success
    flags = ["--image", BASE, "--nodes", "of the test", "--repeats", "6", "--json", "-"]
    done = subprocess.run(
        [sys.executable, "-m", "mmar_jobs", "bench", "pod-start", *flags],
        env=namespace.environment(None),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    [figure] = map(json.loads, done.stdout.splitlines())
    assert ("pod_start/ready_s", 6, BASE) == (
        figure["name"],
        figure["repeats"],
        figure["environment"]["image"],
    )
    assert 0.1 < figure["low"] <= figure["high"] < 60
    namespace.wait_until("all pods are gone", lambda: not namespace.pods())
