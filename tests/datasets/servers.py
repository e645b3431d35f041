"""A local web server with ranges and etags, and a local mirror of the Hub and of Zenodo on it.

Not here: tests. Real HTTP on loopback; it can be told to cut answers off, fail or lie.
"""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_BLOCK = 1 << 16


@dataclass
class Site:
    """Files by path; `asked` logs (path, range, authorization) of each request in order.

    `cut_after` maps a path to a number of bytes after which its next answers break off; `statuses`
    to codes that its next answers are; what is `slow` comes at 0.3 MB/s.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    cut_after: dict[str, list[int]] = field(default_factory=dict)
    statuses: dict[str, list[int]] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    slow: set[str] = field(default_factory=set)
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    has_ranges: bool = True
    has_etags: bool = True
    base: str = ""

    def ranges(self, path: str) -> list[str | None]:
        """The ranges that were asked of `path`."""
        return [asked for name, asked, _ in self.asked if name == path]


class _Handler(BaseHTTPRequestHandler):
    site: Site
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Keep the tests' output clean."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.split("?")[0]
        self.site.asked.append((path, self.headers["Range"], self.headers["Authorization"]))
        if self.site.statuses.get(path):
            self._say(self.site.statuses[path].pop(0), b"", {})
        elif path in self.site.redirects:
            self._say(302, b"", {"Location": self.site.redirects[path]})
        elif path not in self.site.files:
            self._say(404, b"not here", {})
        else:
            self._give(path, self.site.files[path] if with_body else b"")

    def _give(self, path: str, data: bytes) -> None:
        etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        headers = {"ETag": etag} if self.site.has_etags else {}
        asked = self.headers["Range"]
        is_same = self.headers["If-Range"] in (None, etag)
        if not (asked and self.site.has_ranges and is_same):
            return self._say(200, data, headers, path)
        start = int(asked.removeprefix("bytes=").split("-")[0])
        if start >= len(data):
            return self._say(416, b"", headers)
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return self._say(206, data[start:], headers, path)

    def _say(self, code: int, data: bytes, headers: dict[str, str], path: str = "") -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        cuts = self.site.cut_after.get(path)
        if cuts:
            self.wfile.write(data[: cuts.pop(0)])
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True
            return
        for start in range(0, len(data), _BLOCK):
            self.wfile.write(data[start : start + _BLOCK])
            if path in self.site.slow:
                time.sleep(0.2)


@contextmanager
def serving(site: Site) -> Iterator[Site]:
    """Serve a site on a free port of loopback."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A connection that this server cut itself is no news."""

    server = Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": site}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    site.base = f"http://127.0.0.1:{server.server_port}"
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


REVISION = "0123456789abcdef0123456789abcdef01234567"


def add_hub_dataset(
    site: Site, repository: str, files: dict[str, bytes], *, revisions: tuple[str, ...] = ("main",)
) -> None:
    """Put a data set on the site as the Hub's API and resolver would give it."""
    siblings = [
        {
            "rfilename": name,
            "size": len(data),
            "blobId": hashlib.sha1(data, usedforsecurity=False).hexdigest(),
            "lfs": {
                "sha256": hashlib.sha256(data).hexdigest(),
                "size": len(data),
                "pointerSize": 134,
            },
        }
        for name, data in files.items()
    ]
    info = {
        "_id": "1",
        "id": repository,
        "sha": REVISION,
        "tags": ["license:cc-by-nc-4.0"],
        "siblings": siblings,
        "private": False,
        "downloads": 0,
        "likes": 0,
    }
    answer = json.dumps(info).encode()
    site.files[f"/api/datasets/{repository}"] = answer
    for revision in (*revisions, REVISION):
        site.files[f"/api/datasets/{repository}/revision/{revision}"] = answer
    for name, data in files.items():
        site.files[f"/datasets/{repository}/resolve/{REVISION}/{name}"] = data


def add_zenodo_record(site: Site, record: str, files: dict[str, bytes]) -> None:
    """Put a record on the site as Zenodo's API would give it."""
    listed = [
        {
            "key": name,
            "size": len(data),
            "checksum": f"md5:{hashlib.md5(data, usedforsecurity=False).hexdigest()}",
        }
        for name, data in files.items()
    ]
    value = {"files": listed, "metadata": {"license": {"id": "cc-by-4.0"}}}
    site.files[f"/api/records/{record}"] = json.dumps(value).encode()
    for name, data in files.items():
        site.files[f"/api/records/{record}/files/{name}/content"] = data
