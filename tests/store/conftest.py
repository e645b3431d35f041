"""Places to put a store at: a folder, moto's S3 server, and versitygw where it is installed.

Not here: any mock. All servers speak real HTTP on loopback.
"""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from werkzeug.serving import WSGIRequestHandler, make_server

from mmar_jobs.store import Store, open_store

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BUCKET = "mmar"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIATESTTESTTEST",
    "AWS_SECRET_ACCESS_KEY": "very-secret-word",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_MAX_ATTEMPTS": "2",
    "MOTO_S3_DEFAULT_MAX_KEYS": "7",  # so that short lists have pages too
}
PRELUDE = """
import os, sys, time
from pathlib import Path
from mmar_jobs.store import open_store
store = open_store(sys.argv[1], endpoint_url=sys.argv[2] or None)
"""


@dataclass(frozen=True)
class Place:
    """Somewhere that stores can be opened, each under a name of its own."""

    base: str
    endpoint_url: str | None

    def fresh_uri(self) -> str:
        """An address below which nothing was ever written."""
        return f"{self.base}/{uuid.uuid4().hex}"

    def open(self, uri: str | None = None) -> Store:
        """The store at `uri`, or an empty one."""
        return open_store(uri or self.fresh_uri(), endpoint_url=self.endpoint_url)

    @contextmanager
    def python(self, code: str, uri: str) -> Iterator[subprocess.Popen[str]]:
        """A process that runs `code` on a `store` at `uri`; killed by signal 9 at the end."""
        arguments = [sys.executable, "-c", PRELUDE + code, uri, self.endpoint_url or ""]
        with subprocess.Popen(
            arguments, stdout=subprocess.PIPE, text=True, env=os.environ | ENVIRONMENT
        ) as process:
            try:
                yield process
            finally:
                process.kill()


class OneAtATime:
    """A WSGI app behind a lock, for moto checks If-None-Match and writes in two steps.

    The first PUT of a path that ends with "lost-answer" is done, but answered with 500.
    """

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._answered: set[str] = set()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        """Answer one request."""
        path = environ["PATH_INFO"]
        with self._lock:
            if environ["REQUEST_METHOD"] != "PUT" or not path.endswith("lost-answer"):
                return list(self._app(environ, start))
            if path in self._answered:
                return list(self._app(environ, start))
            self._answered.add(path)
            list(self._app(environ, lambda *_: None))
        start("500 Internal Server Error", [("Content-Length", "0")])
        return []


class Silent(WSGIRequestHandler):
    """Logs nothing."""

    def log_request(self, *_: object) -> None:
        """Keep quiet."""


@contextmanager
def moto_server() -> Iterator[str]:
    """URL of an S3 server in this process."""
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        create_backend_app,
    )

    app = OneAtATime(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Silent)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def versitygw_server(folder: Path) -> Iterator[str]:
    """URL of a versitygw over `folder`; skips the test where it is not on PATH."""
    program = shutil.which("versitygw")
    if program is None:
        pytest.skip("versitygw is not on PATH: only moto's server speaks S3 in these tests")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    keys = ["--access", ENVIRONMENT["AWS_ACCESS_KEY_ID"]]
    keys += ["--secret", ENVIRONMENT["AWS_SECRET_ACCESS_KEY"]]
    arguments = [program, *keys, "--port", f"127.0.0.1:{port}", "posix", str(folder)]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


@pytest.fixture(scope="session", autouse=True)
def aws_environment() -> Iterator[None]:
    """Credentials that open nothing, and no look at the developer's own."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def places(
    aws_environment: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Place]]:
    """Starts each kind of place once, when the first test asks for it."""
    del aws_environment
    started: dict[str, Place] = {}
    with ExitStack() as stack:

        def start(kind: str) -> Place:
            if kind in started:
                return started[kind]
            folder = tmp_path_factory.mktemp(kind)
            if kind == "file":
                started[kind] = Place(folder.as_uri(), None)
                return started[kind]
            server = moto_server() if kind == "s3" else versitygw_server(folder)
            endpoint_url = stack.enter_context(server)
            boto3.client("s3", endpoint_url=endpoint_url).create_bucket(Bucket=BUCKET)
            started[kind] = Place(f"s3://{BUCKET}", endpoint_url)
            return started[kind]

        yield start


@pytest.fixture(params=["file", "s3", "versitygw"])
def place(request: pytest.FixtureRequest, places: Callable[[str], Place]) -> Place:
    """Each kind of place in turn: what a test says here is the contract of all."""
    return places(request.param)


@pytest.fixture
def store(place: Place) -> Store:
    """An empty store at each kind of place."""
    return place.open()


@pytest.fixture
def moto(places: Callable[[str], Place]) -> Place:
    """The place on moto's server."""
    return places("s3")


@pytest.fixture
def moto_client(moto: Place) -> "S3Client":
    """A plain client of moto's server, to tamper with what a store wrote."""
    return boto3.client("s3", endpoint_url=moto.endpoint_url)
