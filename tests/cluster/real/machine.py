"""A real node, a real S3 server and a namespace for as long as a block lasts, inside `enter`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmar_jobs.tiny.build import TinyWorld, build_world
from tests.cluster.real.images import Builder
from tests.cluster.real.namespace import Namespace
from tests.cluster.real.node import BIN, Node
from tests.cluster.real.s3 import BUCKET, S3

STATE = BIN.parent / "state"


@contextmanager
def running_node() -> Iterator[Node]:
    """A node that is ready; its state, on disk, is removed by the next one's start."""
    found = Node(STATE)
    try:
        found.start()
        builder = Builder(STATE / "images")
        for archive in (builder.build_base(), builder.build_stand_in()):
            found.load_image(archive)
        yield found
    finally:
        found.stop()


@contextmanager
def running_s3() -> Iterator[S3]:
    """A server with one empty bucket."""
    found = S3(STATE / "s3")
    try:
        found.start()
        found.client.create_bucket(Bucket=BUCKET)
        yield found
    finally:
        found.stop()


@contextmanager
def new_namespace(node: Node, name: str, folder: Path) -> Iterator[Namespace]:
    """An empty namespace; `folder` is for its files."""
    found = Namespace(node, name, folder)
    response = found.ask("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    assert response.is_success, response.text
    try:
        yield found
    finally:
        found.close()


def small_world(folder: Path, s3: S3) -> TinyWorld:
    """A world of few questions, in a folder and in the bucket."""
    found = build_world(folder, seed=7, num_train=12, num_heldout=8, num_benchmark=6)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            s3.client.upload_file(str(path), BUCKET, f"world/{path.relative_to(folder)}")
    return found
