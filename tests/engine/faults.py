"""An HTTP server on the loopback whose replies fail on order: by status, cut, garbled, lost, late.

Not here: what the replies are (loopback.py, tests/serve/proxy.py).
"""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Fault:
    """What becomes of one call: a status, or a reply that is cut, garbled or never sent.

    `keep_bytes` cuts the connection after so many bytes of the body; `garble` ends the body there
    although the header promises no more; `lost` never answers, `stall_s` waits first.
    """

    status: int = 200
    message: str = "as the script wants it"
    headers: dict[str, str] = field(default_factory=dict)
    keep_bytes: int | None = None
    garble: bool = False
    lost: bool = False
    stall_s: float = 0.0


# By number of the call, from 0: what happens to it, None for nothing.
Script = Callable[[int], Fault | None]


class FaultyServer(ThreadingHTTPServer):
    """Serves until it is closed; see listening."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, handler: type["FaultyHandler"], address: tuple[str, int] = ("127.0.0.1", 0)
    ) -> None:
        super().__init__(address, handler)
        self.closing = threading.Event()
        self.connections: set[socket.socket] = set()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}"

    def cut(self) -> None:
        """Cut every connection, as a server that dies does."""
        for connection in list(self.connections):
            connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of the game."""


class FaultyHandler(BaseHTTPRequestHandler):
    """Sends replies, or what a fault makes of them."""

    server: FaultyServer
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        """Note the connection."""
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        """Forget the connection."""
        self.server.connections.discard(self.connection)
        super().finish()

    def body(self) -> bytes:
        """The body of the request."""
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def reply(self, fault: Fault | None, make: Callable[[], tuple[int, bytes]]) -> None:
        """Send the status and body that `make` gives, as far as the fault lets them through."""
        try:
            self._reply(fault or Fault(), make)
        except OSError:
            self.close_connection = True

    def _reply(self, fault: Fault, make: Callable[[], tuple[int, bytes]]) -> None:
        if fault.lost or fault.stall_s:
            self.server.closing.wait(60 if fault.lost else fault.stall_s)
        if fault.lost:
            self.close_connection = True
            return
        if fault.status != 200:
            self.send(fault.status, json.dumps(error(fault.message)).encode(), fault.headers)
            return
        status, data = make()
        if fault.garble:
            self.send(status, data[: fault.keep_bytes])
        else:
            self.send(status, data, keep_bytes=fault.keep_bytes)

    def send(
        self,
        status: int,
        data: bytes,
        headers: dict[str, str] | None = None,
        *,
        keep_bytes: int | None = None,
    ) -> None:
        """Send a reply, or its beginning and no more."""
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[:keep_bytes])
        if keep_bytes is not None:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


def error(message: str) -> dict[str, Any]:
    """An error as vLLM words it."""
    return {"error": {"message": message, "type": "Error", "param": None, "code": 0}}


@contextmanager
def listening(server: FaultyServer) -> Iterator[None]:
    """Serve in a thread of its own for the length of the block."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
