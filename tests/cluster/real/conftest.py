"""A real Kubernetes node and a real S3 server for all tests of this folder.

They run in namespaces of the kernel that `enter` makes: `make test-cluster` starts it all.
"""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmar_jobs.tiny.build import TinyWorld, build_world
from tests.cluster.real.images import build_base
from tests.cluster.real.namespace import Namespace
from tests.cluster.real.node import BIN, MARKER, Node
from tests.cluster.real.s3 import BUCKET, S3

STATE = BIN.parent / "state"


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    """A node that is ready; its state, on disk, is removed by the next one's start."""
    if not MARKER.exists():
        pytest.skip("no node here: make test-cluster makes one and runs this")
    found = Node(STATE)
    try:
        found.start()
        found.load_image(build_base(STATE / "images"))
        yield found
    finally:
        found.stop()


@pytest.fixture
def namespace(node: Node, tmp_path: Path) -> Iterator[Namespace]:
    """A new namespace."""
    found = Namespace(node, f"t-{secrets.token_hex(4)}", tmp_path)
    response = found.ask("POST", "/api/v1/namespaces", {"metadata": {"name": found.name}})
    assert response.is_success, response.text
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def gpus(namespace: Namespace) -> Iterator[int]:
    """Four GPUs of the node, played by an extended resource."""
    status = f"/api/v1/nodes/{namespace.node.name}/status"
    for num in ("4", None):
        resources = {"nvidia.com/gpu": num}
        change = {"status": {"capacity": resources, "allocatable": resources}}
        assert namespace.ask("PATCH", status, change).is_success
        if num:
            yield int(num)


@pytest.fixture(scope="session")
def s3(node: Node) -> Iterator[S3]:
    """A server with one empty bucket."""
    found = S3(STATE / "s3")
    try:
        found.start()
        found.client.create_bucket(Bucket=BUCKET)
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, s3: S3) -> TinyWorld:
    """A small world, in a folder and in the bucket."""
    folder = tmp_path_factory.mktemp("world")
    found = build_world(folder, seed=7, num_train=12, num_heldout=8, num_benchmark=6)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            s3.client.upload_file(str(path), BUCKET, f"world/{path.relative_to(folder)}")
    return found
