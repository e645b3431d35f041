"""The whole loop as Argo would run it: every stage a Job, everything in S3, the same submission."""

from mmar_jobs.tiny.build import TinyWorld
from tests.cluster.real.evidence import evidence
from tests.cluster.real.loop import STAGES, Loop
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
