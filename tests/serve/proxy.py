"""A proxy before a real server: it spoils replies on order, and may turn to another server.

Not here: what can go wrong with a reply (tests/engine/faults.py).
"""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from tests.engine.faults import FaultyHandler, FaultyServer, Script, listening

_TIMEOUT_S = 300


class Proxy(FaultyServer):
    """Passes on to `target` what the script lets through, canaries counted as well.

    `disguise` is a pair of names: the first is shown to clients where the server says the second.
    """

    def __init__(self, target: str, script: Script) -> None:
        super().__init__(_Handler)
        self.target = target
        self.disguise = ("", "")
        self.num_asked = 0
        self.num_spoilt = 0
        self._script = script
        self._lock = threading.Lock()

    def turn_to(self, target: str, *, shown: str, hidden: str) -> None:
        """Stand for another server from now on, as if the first came back as that."""
        self.disguise = (shown, hidden)
        self.target = target
        self.cut()

    def pass_on(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of the server's own reply; an OSError where it gives none."""
        shown, hidden = (name.encode() for name in self.disguise)
        if shown:
            body = body.replace(shown, hidden)
        connection = http.client.HTTPConnection(urlsplit(self.target).netloc, timeout=_TIMEOUT_S)
        try:
            connection.request(method, path, body, {"content-type": "application/json"})
            response = connection.getresponse()
            data = response.read()
        except http.client.HTTPException as error:
            raise OSError(str(error)) from None
        finally:
            connection.close()
        return response.status, data.replace(hidden, shown) if shown else data

    def answer(self, handler: "_Handler") -> None:
        """Answer one completion request."""
        body = handler.body()
        with self._lock:
            fault = self._script(self.num_asked)
            self.num_asked += 1
            self.num_spoilt += fault is not None
        handler.reply(fault, lambda: self.pass_on("POST", handler.path, body))


class _Handler(FaultyHandler):
    server: Proxy

    def do_GET(self) -> None:  # noqa: N802 - the name that http.server looks up
        self.reply(None, lambda: self.server.pass_on("GET", self.path, b""))

    def do_POST(self) -> None:  # noqa: N802 - the same
        self.server.answer(self)


@contextmanager
def proxy(target: str, script: Script = lambda _: None) -> Iterator[Proxy]:
    """A running proxy before the server at `target`."""
    server = Proxy(target, script)
    with listening(server):
        yield server
