"""The whole loop as Argo would run it, under the worst of weathers: the same submission."""

import subprocess

from mmar_jobs.tiny.build import TinyWorld
from tests.cluster.real.evidence import evidence
from tests.cluster.real.fault_proxy import URL as FAULTY
from tests.cluster.real.fault_proxy import Faults, faulty
from tests.cluster.real.loop import STAGES, Loop
from tests.cluster.real.namespace import Namespace
from tests.cluster.real.s3 import KEYS, S3

# Over so soon after they took the lease, or without one, that their pods go while Python starts.
SHORT = ("ingest", "filter", "submit", "report")


def test_the_workflow_makes_the_local_runs_submission_whatever_is_lost(
    namespace: Namespace, s3: S3, world: TinyWorld, local_submission: bytes
) -> None:
    """Each stage loses a pod, training without a warning; S3 refuses a fifth, loses each 50th.

    Order, arguments and retries are those of argo/; no key of S3 is told anywhere.
    """

    def lose(stage: str, program: subprocess.Popen[str]) -> None:
        def is_under_way() -> bool:
            assert program.poll() is None, program.communicate()
            return bool(_running(namespace, stage)) and (stage in SHORT or loop.holds_lease())

        namespace.wait_until(f"{stage} works", is_under_way, 120)
        grace = {"gracePeriodSeconds": 0} if stage == "train" else {}
        namespace.delete("pods", _running(namespace, stage)[-1], **grace)

    loop = Loop(namespace, s3, world, lose)
    loop.prepare(MMAR_ENDPOINT_URL=FAULTY)
    with faulty(Faults()) as faults:
        submitted = loop.submit()
    assert local_submission == loop.submission()
    assert STAGES == [stage for stage in STAGES if loop.said[stage].events("pod_gone")]
    assert faults.done["refused"] > 20
    assert faults.done["cut"] > 2

    assert STAGES == [command[3] for command in submitted.ran if command[2] == "run-job"]
    scaled = [word for command in submitted.ran for word in command if "--replicas" in word]
    assert ["--replicas=1", "--replicas=0"] * 3 + ["--replicas=0"] == scaled
    assert not [pod for pod in namespace.pods() if pod["metadata"]["name"] == "vllm-0"]
    texts = evidence(loop)
    told = [(place, name) for place in texts for name, key in KEYS.items() if key in texts[place]]
    assert [] == told
    assert [] == [place for place, text in texts.items() if len(text) < 100]


def _running(namespace: Namespace, stage: str) -> list[str]:
    """Names of the pods of a stage that run and may go on."""
    pods = [pod["metadata"] for pod in namespace.running(stage)]
    return [pod["name"] for pod in pods if "deletionTimestamp" not in pod]
