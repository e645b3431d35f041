"""A real Kubernetes node and a real S3 server for all tests of this folder.

They run in namespaces of the kernel that `enter` makes: `make test-cluster` starts it all.
"""

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmar_jobs.tiny import tiny_model_folder
from mmar_jobs.tiny.build import TinyWorld
from tests.cluster.real.argo_api import DEFINITIONS, KINDS, definition
from tests.cluster.real.loop import RUN_ID, SETTINGS
from tests.cluster.real.machine import new_namespace, running_node, running_s3, small_world
from tests.cluster.real.namespace import ROOT, Namespace
from tests.cluster.real.node import MARKER, Node
from tests.cluster.real.s3 import S3


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    """The one node of all tests."""
    if not MARKER.exists():
        pytest.skip("no node here: make test-cluster makes one and runs this")
    with running_node() as found:
        yield found


@pytest.fixture
def namespace(node: Node, tmp_path: Path) -> Iterator[Namespace]:
    """A new namespace."""
    with new_namespace(node, f"t-{secrets.token_hex(4)}", tmp_path) as found:
        yield found


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
def argo_kinds(node: Node) -> None:
    """Argo's kinds, as if Argo were installed; they go with the node."""
    for kind, plural in KINDS.items():
        made = node.ask("POST", DEFINITIONS, definition(kind))
        assert made.is_success, made.text
        path = f"/apis/argoproj.io/v1alpha1/{plural}"
        node.wait(f"kind {kind}", lambda at=path: node.ask("GET", at).is_success)


@pytest.fixture(scope="session")
def s3(node: Node) -> Iterator[S3]:
    """The one S3 server of all tests."""
    with running_s3() as found:
        yield found


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, s3: S3) -> TinyWorld:
    """A small world, in a folder and in the bucket."""
    return small_world(tmp_path_factory.mktemp("world"), s3)


@pytest.fixture(scope="session")
def local_submission(world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What `mmar-jobs run` makes of the world on this machine."""
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
