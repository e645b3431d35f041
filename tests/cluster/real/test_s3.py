"""Tests of a stage in a pod while S3 is away or answers badly: nothing is lost, nothing differs."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmar_jobs.tiny.build import TinyWorld
from tests.cluster.real.clocks import wrong_clock
from tests.cluster.real.fault_proxy import URL as FAULTY
from tests.cluster.real.fault_proxy import Faults, faulty
from tests.cluster.real.namespace import ROOT, Namespace, bucket_uri, said
from tests.cluster.real.s3 import BUCKET, S3
from tests.cluster.real.stages import fitted_jobs

AWAY_S = 60
MANIFEST = "manifest.json"  # says where and when


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
    return {path.name: path.read_bytes() for path in _files(store) if path.name != MANIFEST}


def _files(store: Path) -> list[Path]:
    return [path for path in (store / "runs/r/questions").iterdir() if path.is_file()]


def _made(s3: S3, prefix: str) -> dict[str, bytes]:
    found = s3.client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/runs/r/questions/")
    keys = [each["Key"] for each in found["Contents"]]
    read = {
        key.rpartition("/")[2]: s3.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        for key in keys
    }
    assert read.pop(MANIFEST)
    return read


def _ingest(namespace: Namespace, world: TinyWorld, **settings: str) -> list[str]:
    """What run-job needs for the stage that reads most objects: every clip is one."""
    namespace.add_settings(bucket_uri(f"{namespace.name}/store"), **settings)
    namespace.make("serviceaccounts", {"metadata": {"name": "mmar-jobs-stage"}})
    uri = bucket_uri("world")
    files = {"questions": world.train, "heldout": world.heldout, "benchmark": world.benchmark}
    flags = [f"--{name}={uri}/{path.name}" for name, path in files.items()]
    jobs = str(fitted_jobs(namespace))
    return ["run-job", "ingest", "--run-id=r", "--jobs", jobs, "--", *flags]


def test_s3_that_refuses_and_cuts_changes_nothing(
    namespace: Namespace, s3: S3, world: TinyWorld, wanted: dict[str, bytes]
) -> None:
    """A fifth of the answers is 503, each 7th is lost on its way; every byte is as without."""
    command = _ingest(namespace, world, MMAR_ENDPOINT_URL=FAULTY)
    with faulty(Faults(cut_every=7)) as faults:
        done = namespace.run(*command)
    assert 0 == done.code, done.out + done.err
    assert wanted == _made(s3, f"{namespace.name}/store")
    assert faults.done["refused"] > 1
    assert faults.done["cut"] > 1


def test_s3_that_is_away_delays_and_nothing_else(
    namespace: Namespace, s3: S3, world: TinyWorld, wanted: dict[str, bytes]
) -> None:
    """It stops before the stage asks and comes back a minute later, which no pod survives."""
    command = _ingest(namespace, world)
    s3.stop()
    try:
        program = namespace.start(*command)
        time.sleep(AWAY_S)
    finally:
        s3.start()
    done = said(program)
    assert 0 == done.code, done.out + done.err
    assert wanted == _made(s3, f"{namespace.name}/store")
    assert len(namespace.pods()) > 1


@pytest.mark.parametrize(("skew", "code"), [("-5m", 0), ("+5m", 0), ("+1h", 2)])
def test_a_wrong_clock_is_borne_or_named(
    namespace: Namespace, s3: S3, world: TinyWorld, wanted: dict[str, bytes], skew: str, code: int
) -> None:
    """S3 bears a quarter of an hour, and so does the run's lease; what is more is said."""
    # Waiting goes by another clock than the date, and must stay right.
    clock = wrong_clock(skew, FAKETIME_DONT_FAKE_MONOTONIC="1")
    done = namespace.run(*_ingest(namespace, world, **clock))
    assert code == done.code, done.out + done.err
    if code:
        assert "S3 finds this machine's clock wrong" in done.out
    else:
        assert wanted == _made(s3, f"{namespace.name}/store")
