"""Test of the whole loop over S3: questions, clips and store in a bucket, as on a cluster."""

from pathlib import Path

import boto3
import pytest

from mmar_jobs import loop
from mmar_jobs.artifact import Artifact
from mmar_jobs.store import open_store
from mmar_jobs.tiny.build import TinyWorld
from tests.fakes import FakeOpener, edges_of
from tests.loop_run import RUN_ID, Scripted, command_of, edges_for
from tests.store.conftest import BUCKET, ENVIRONMENT, moto_server

PACKED = "submission.zip"


def test_run_over_s3_gives_the_same_submission(
    world: TinyWorld, model_folder: Path, tmp_path: Path
) -> None:
    """Nothing on S3 is done differently: byte for byte the zip of the run on a folder."""
    local = command_of(world, model_folder, tmp_path / "store")
    expected = loop.run(local, edges_for(local, FakeOpener(Scripted(world))))
    with pytest.MonkeyPatch.context() as patch, moto_server() as endpoint_url:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        client = boto3.client("s3", endpoint_url=endpoint_url)
        client.create_bucket(Bucket=BUCKET)
        for path in filter(Path.is_file, world.folder.rglob("*")):
            key = f"world/{path.relative_to(world.folder).as_posix()}"
            client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())
        root = f"s3://{BUCKET}"
        changes = {
            "store": f"{root}/store",
            "endpoint_url": endpoint_url,
            "questions": f"{root}/world/{world.train.name}",
            "heldout": f"{root}/world/{world.heldout.name}",
            "benchmark": f"{root}/world/{world.benchmark.name}",
        }
        command = local.model_copy(update=changes)
        store = open_store(command.store, endpoint_url=endpoint_url)
        edges, _ = edges_of(store, FakeOpener(Scripted(world)))
        with store.lease(f"runs/{RUN_ID}"):
            submission: Artifact = loop.run(command, edges)
        assert expected.read_bytes(PACKED) == submission.read_bytes(PACKED)
        assert open_store(local.store).list("") == store.list("")
