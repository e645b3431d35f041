"""The whole loop as Argo would run it: every stage a Job, everything in S3, the same submission."""

import subprocess

from mmar_jobs.cluster.jobs import STAGE_LABEL
from mmar_jobs.tiny.build import TinyWorld
from tests.cluster.real.evidence import evidence
from tests.cluster.real.fault_proxy import URL as FAULTY
from tests.cluster.real.fault_proxy import Faults, faulty
from tests.cluster.real.loop import RUN_ID, STAGES, Loop
from tests.cluster.real.namespace import Namespace
from tests.cluster.real.s3 import KEYS, S3


def test_the_workflow_makes_the_local_runs_submission(
    namespace: Namespace, s3: S3, world: TinyWorld, local_submission: bytes
) -> None:
    """Order, arguments and retries are those of argo/; no key of S3 is told anywhere."""
    loop = Loop(namespace, s3, world)
    loop.prepare()
    submitted = loop.submit()
    assert local_submission == loop.submission()
    stages = [command[3] for command in submitted.ran if command[2] == "run-job"]
    assert STAGES == stages
    scaled = [word for command in submitted.ran for word in command if "--replicas" in word]
    assert ["--replicas=1", "--replicas=0"] * 3 + ["--replicas=0"] == scaled
    assert not [pod for pod in namespace.pods() if pod["metadata"]["name"] == "vllm-0"]
    texts = evidence(loop)
    told = [(place, name) for place in texts for name, key in KEYS.items() if key in texts[place]]
    assert [] == told
    assert [] == [place for place, text in texts.items() if len(text) < 100]


def test_a_training_that_is_killed_ends_as_an_undisturbed_one(
    namespace: Namespace, s3: S3, world: TinyWorld
) -> None:
    """Without a warning, under bad S3: the next pod waits for the lease, goes on, and is exact."""
    loop = Loop(namespace, s3, world)
    loop.prepare(MMAR_ENDPOINT_URL=FAULTY)

    def kill(stage: str, program: subprocess.Popen[str]) -> None:
        namespace.wait_until("it works", loop.is_working, 240)
        namespace.delete("pods", _running(namespace, stage)[-1], gracePeriodSeconds=0)

    with faulty(Faults()) as faults:
        assert 0 == loop.run_stage("ingest", *loop.questions)
        assert 0 == loop.run_stage("generate")
        assert 0 == loop.run_stage("filter")
        loop.disturb = kill
        assert 0 == loop.run_stage("train")
        assert loop.said["train"].events("pod_gone")
        disturbed = loop.forget("adapter")
        namespace.delete("batch/v1/jobs", f"{RUN_ID}-i1-train", propagationPolicy="Foreground")
        loop.disturb = lambda stage, program: None
        assert 0 == loop.run_stage("train")
    assert disturbed
    assert disturbed == loop.forget("adapter")
    assert faults.done["refused"] > 5
    assert faults.done["cut"] > 1


def _running(namespace: Namespace, stage: str) -> list[str]:
    """Names of the pods of a stage that run."""
    return [
        pod["metadata"]["name"]
        for pod in namespace.pods()
        if pod["metadata"]["labels"].get(STAGE_LABEL) == stage
        and pod["status"]["phase"] == "Running"
        and "deletionTimestamp" not in pod["metadata"]
    ]
