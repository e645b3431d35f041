"""The whole loop as Argo would run it: every stage a Job, everything in S3, the same submission."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from mmar_jobs.tiny import tiny_model_folder
from mmar_jobs.tiny.build import TinyWorld
from tests.cluster.real.argo import Workflow
from tests.cluster.real.namespace import ROOT, Namespace, bucket_uri
from tests.cluster.real.s3 import BUCKET, S3
from tests.cluster.real.stages import fitted_jobs, server

# Two turns of the tiny model over few questions: seconds of computing a stage.
SETTINGS = {
    "MMAR_PROMPT__VERSION": "baseline",
    "MMAR_SAMPLING__NUM_CANDIDATES": "4",
    "MMAR_SAMPLING__MAX_TOKENS": "96",
    "MMAR_FILTER__WEIGHTS__MASTERED": "0.5",
    "MMAR_LORA__QUANTIZATION": "none",
    "MMAR_OPTIM__TOKEN_BUDGET": "2048",
    "MMAR_ENGINE__THREADS": "1",
    "MMAR_LOG_FORMAT": "json",
}
RUN_ID = "r"


@pytest.fixture(scope="module")
def local_submission(world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What `mmar-jobs run` makes of it on this machine."""
    output = tmp_path_factory.mktemp("local")
    command = [sys.executable, "-m", "mmar_jobs", "run", "--run-id", RUN_ID, "--iterations", "1"]
    command += ["--store", f"{output}/store", "--output", str(output)]
    command += ["--model", str(tiny_model_folder()), "--questions", str(world.train)]
    command += ["--heldout", str(world.heldout), "--benchmark", str(world.benchmark)]
    environment = os.environ | SETTINGS | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, check=False, env=environment, capture_output=True, text=True, timeout=270
    )
    assert 0 == done.returncode, done.stderr[-3000:]
    return (output / "submission.zip").read_bytes()


def test_the_workflow_makes_the_local_runs_submission(
    namespace: Namespace, s3: S3, world: TinyWorld, local_submission: bytes
) -> None:
    """Order, arguments and retries are those of argo/; the server is up only while it is asked."""
    prefix = f"{namespace.name}/store"
    namespace.add_settings(bucket_uri(prefix), MMAR_MODEL="/models/base", **SETTINGS)
    namespace.make("serviceaccounts", {"metadata": {"name": "mmar-jobs-stage"}})
    namespace.make("apps/v1/statefulsets", server())
    jobs = fitted_jobs(namespace)

    def run_pod(command: Sequence[str]) -> tuple[int, dict[str, str]]:
        assert ["mmar-jobs", "cluster"] == list(command[:2])
        outputs = namespace.folder / "outputs" / str(len(submitted.ran))
        own = {"--jobs=": f"--jobs={jobs}", "--outputs=": f"--outputs={outputs}"}
        words = [own.get(f"{word.partition('=')[0]}=", word) for word in command[2:]]
        done = namespace.run(*words)
        assert done.code in (0, 75), f"{words}\n{done.out[-3000:]}\n{done.err[-3000:]}"
        return done.code, _files(outputs)

    uri = bucket_uri("world")
    parameters = {
        "run-id": RUN_ID,
        "questions": f"{uri}/{world.train.name}",
        "benchmark": f"{uri}/{world.benchmark.name}",
        "heldout": f"{uri}/{world.heldout.name}",
        "iterations": "1",
        "servers": "",  # the stages answer in process: no vLLM on this node
    }
    submitted = Workflow("rest-workflow", parameters, run_pod)
    submitted.run()
    key = f"{prefix}/runs/{RUN_ID}/submission"
    found = s3.client.list_objects_v2(Bucket=BUCKET, Prefix=key)["Contents"]
    [zipped] = [each["Key"] for each in found if each["Key"].endswith("submission.zip")]
    made = s3.client.get_object(Bucket=BUCKET, Key=zipped)["Body"].read()
    assert local_submission == made
    stages = [command[3] for command in submitted.ran if command[2] == "run-job"]
    wanted = ["ingest", "generate", "filter", "train", "evaluate", "infer", "submit", "report"]
    assert wanted == stages
    scaled = [word for command in submitted.ran for word in command if "--replicas" in word]
    assert ["--replicas=1", "--replicas=0"] * 3 + ["--replicas=0"] == scaled
    assert not [pod for pod in namespace.pods() if pod["metadata"]["name"] == "vllm-0"]


def _files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()} if folder.exists() else {}
