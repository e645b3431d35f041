"""A proxy before S3 that answers 503 and cuts connections, by a seed, and counts what it did.

Addresses stay as they were signed, so the server behind it accepts what it lets through.
"""

import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.cluster.real.node import ADDRESS
from tests.cluster.real.s3 import PORT as S3_PORT

PORT = 7071
URL = f"http://{ADDRESS}:{PORT}"


@dataclass
class Faults:
    """What to do to how many requests."""

    refused: float = 0.2  # share of requests that are answered 503
    cut_every: int = 50  # each such answer is lost, in its middle if it has one
    seed: int = 0
    done: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()

    def next(self) -> str:
        """What becomes of the next request."""
        with self._lock:
            self.done["requests"] += 1
            fault = "passed"
            if self._random.random() < self.refused:
                fault = "refused"
            elif not self.done["requests"] % self.cut_every:
                fault = "cut"
            self.done[fault] += 1
            return fault


@contextmanager
def faulty(faults: Faults) -> Iterator[Faults]:
    """S3 at URL, as bad as `faults` says."""
    handler = type("Handler", (_Handler,), {"faults": faults})
    server = ThreadingHTTPServer((ADDRESS, PORT), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield faults
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    faults: Faults
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.faults.next()
        if fault == "refused":
            self._answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")
            return
        status, headers, data = self._ask(body)
        if fault == "cut":
            self._cut(status, headers, data)
        else:
            self._answer(status, headers, data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """The server's own answer."""
        upstream = HTTPConnection(ADDRESS, S3_PORT, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() != "connection":
                    upstream.putheader(name, value)
            upstream.endheaders(body)
            response = upstream.getresponse()
            headers = dict(response.getheaders())
            return response.status, headers, response.read()
        finally:
            upstream.close()

    def _cut(self, status: int, headers: dict[str, str], data: bytes) -> None:
        """Done, but half of the answer is lost, or all of one without a body."""
        if data:
            self._begin(status, headers, len(data))
            self.wfile.write(data[: len(data) // 2])
        self.close_connection = True

    def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        num_bytes = len(data)
        if self.command == "HEAD":
            num_bytes = int(headers.get("Content-Length", 0))
        self._begin(status, headers, num_bytes)
        self.wfile.write(data)

    def _begin(self, status: int, headers: dict[str, str], num_bytes: int) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(num_bytes))
        self.end_headers()
