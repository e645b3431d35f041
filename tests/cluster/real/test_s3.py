"""Tests of stages in pods while S3 is away or answers badly: nothing is lost, nothing differs."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmar_jobs.tiny.build import TinyWorld
from tests.cluster.real.fault_proxy import URL as FAULTY
from tests.cluster.real.fault_proxy import Faults, faulty
from tests.cluster.real.namespace import ROOT, Namespace, bucket_uri, said
from tests.cluster.real.s3 import BUCKET, S3
from tests.cluster.real.stages import fitted_jobs


@pytest.fixture(scope="module")
def wanted(world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that ingest makes on this machine, without any fault."""
    store = tmp_path_factory.mktemp("local")
    command = [sys.executable, "-m", "mmar_jobs", "ingest", "--store", str(store), "--run-id", "r"]
    command += ["--questions", str(world.train), "--heldout", str(world.heldout)]
    command += ["--benchmark", str(world.benchmark)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, check=False, env=environment, capture_output=True, text=True, timeout=120
    )
    assert 0 == done.returncode, done.stderr
    return _shards({path.name: path.read_bytes() for path in _files(store)})


def _files(store: Path) -> list[Path]:
    return [path for path in (store / "runs/r/questions").iterdir() if path.is_file()]


def _shards(files: dict[str, bytes]) -> dict[str, bytes]:
    """Without the manifest, which says where and when."""
    return {name: data for name, data in files.items() if name != "manifest.json"}


def _made(s3: S3, prefix: str) -> dict[str, bytes]:
    found = s3.client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/runs/r/questions/")
    keys = [each["Key"] for each in found["Contents"]]
    assert any(key.endswith("manifest.json") for key in keys)
    return _shards(
        {
            key.rpartition("/")[2]: s3.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
            for key in keys
        }
    )


def _flags(world: TinyWorld) -> list[str]:
    uri = bucket_uri("world")
    files = {"questions": world.train, "heldout": world.heldout, "benchmark": world.benchmark}
    return [f"--{name}={uri}/{path.name}" for name, path in files.items()]


def test_s3_that_refuses_and_cuts_changes_nothing(
    namespace: Namespace, s3: S3, world: TinyWorld, wanted: dict[str, bytes]
) -> None:
    """A fifth of the answers is 503, each 20th is cut; every byte is as without."""
    prefix = f"{namespace.name}/store"
    namespace.add_settings(bucket_uri(prefix), MMAR_ENDPOINT_URL=FAULTY)
    namespace.make("serviceaccounts", {"metadata": {"name": "mmar-jobs-stage"}})
    jobs = str(fitted_jobs(namespace))
    with faulty(Faults(cut_every=20)) as faults:
        done = namespace.run(
            "run-job", "ingest", "--run-id=r", "--jobs", jobs, "--", *_flags(world)
        )
    assert 0 == done.code, done.out + done.err
    assert wanted == _made(s3, prefix)
    assert faults.done["refused"] > 5
    assert faults.done["cut"] > 1


def test_s3_that_is_away_delays_and_nothing_else(
    namespace: Namespace, s3: S3, world: TinyWorld, wanted: dict[str, bytes]
) -> None:
    """It stops before the stage asks and comes back 30 s later."""
    prefix = f"{namespace.name}/store"
    namespace.add_settings(bucket_uri(prefix))
    namespace.make("serviceaccounts", {"metadata": {"name": "mmar-jobs-stage"}})
    jobs = str(fitted_jobs(namespace))
    s3.stop()
    try:
        program = namespace.start(
            "run-job", "ingest", "--run-id=r", "--jobs", jobs, "--", *_flags(world)
        )
        time.sleep(30)
    finally:
        s3.start()
    done = said(program)
    assert 0 == done.code, done.out + done.err
    assert wanted == _made(s3, prefix)
