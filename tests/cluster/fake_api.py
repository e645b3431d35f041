"""An API server of Kubernetes on loopback that keeps objects and does what a test scripts.

It lists, gets, applies, merges, deletes and watches as the real one does, and fails on demand: what
is hard to provoke on a real cluster. No controllers: a test plays them by `put` and `drop`.
"""

import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kubernetes import client

from mmar_jobs.cluster.api import Cluster

NAMESPACE = "ns"
Object = dict[str, Any]


@dataclass
class FakeApi:
    """Objects by plural and name, their history, and the faults to come."""

    objects: dict[str, dict[str, Object]] = field(default_factory=lambda: defaultdict(dict))
    logs: dict[str, list[str]] = field(default_factory=dict)  # lines, stamped, by pod
    statuses: list[int] = field(default_factory=list)  # of the next answers, instead of 200
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)  # of a verb and plural
    num_cuts: int = 0  # of the next watches and logs, after their first line and a half
    oldest: int = 0  # versions before it are forgotten
    requests: list[str] = field(default_factory=list)
    _version: int = 0
    _history: list[tuple[int, str, str, Object]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def put(self, plural: str, thing: Object) -> Object:
        """Create or replace an object, as a controller or a person would."""
        with self.changed:
            name = thing["metadata"]["name"]
            kind = "MODIFIED" if name in self.objects[plural] else "ADDED"
            self._version += 1
            thing["metadata"]["resourceVersion"] = str(self._version)
            thing["metadata"].setdefault("uid", f"uid-{self._version}")
            thing["metadata"].setdefault("creationTimestamp", f"t{self._version:04}")
            thing.setdefault("status", {})
            self.objects[plural][name] = thing
            self._history.append((self._version, plural, kind, json.loads(json.dumps(thing))))
            self.changed.notify_all()
        return thing

    def drop(self, plural: str, name: str) -> None:
        """Delete an object at once."""
        with self.changed:
            thing = self.objects[plural].pop(name)
            self._version += 1
            thing["metadata"]["resourceVersion"] = str(self._version)
            self._history.append((self._version, plural, "DELETED", thing))
            self.changed.notify_all()

    def forget(self) -> None:
        """Compact: watches from an earlier version are told that it is gone."""
        with self.changed:
            self.oldest = self._version
            self.changed.notify_all()

    def after(self, version: int, plural: str, wait_s: float) -> list[tuple[int, str, Object]]:
        """Changes after a version, waiting for some."""

        def found() -> list[tuple[int, str, Object]]:
            return [(v, kind, o) for v, p, kind, o in self._history if v > version and p == plural]

        with self.changed:
            self.changed.wait_for(lambda: found() or version < self.oldest, wait_s)
            return found()

    @property
    def version(self) -> int:
        """Of the newest change."""
        return self._version


@contextmanager
def serving(api: FakeApi) -> Iterator[Cluster]:
    """A client of `api` behind a real port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": api}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    settings = client.Configuration(host=f"http://127.0.0.1:{server.server_port}")
    settings.retries = False
    try:
        yield Cluster(client.ApiClient(settings), NAMESPACE, outage_s=5)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def write_kubeconfig(cluster: Cluster, path: Path) -> None:
    """The configuration of a person who uses that namespace, for a process of its own."""
    host = cluster.client.configuration.host
    context = {"cluster": "c", "user": "u", "namespace": NAMESPACE}
    config = {
        "clusters": [{"name": "c", "cluster": {"server": host}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": context}],
        "current-context": "c",
    }
    path.write_text(json.dumps(config))


class _Handler(BaseHTTPRequestHandler):
    api: FakeApi
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        plural, name, subresource, query = self._parsed()
        if self._fails("get", plural):
            return
        objects = self.api.objects[plural]
        if subresource == "log":
            since = query.get("sinceTime", "")[:19]
            self._stream([line for line in self.api.logs[name] if line >= since])
        elif name:
            self._answer(objects[name]) if name in objects else self._say(404, f"no {name}")
        elif query.get("watch"):
            self._watch(plural, int(query["resourceVersion"]))
        else:
            metadata = {"resourceVersion": str(self.api.version)}
            self._answer({"items": self._selected(plural, query), "metadata": metadata})

    def do_PATCH(self) -> None:
        plural, name, _, _ = self._parsed()
        change = self._body()
        if self._fails("patch", plural):
            return
        with self.api.changed:
            old = self.api.objects[plural].get(name)
            if self.headers["Content-Type"].startswith("application/merge-patch"):
                if old is None:
                    self._say(404, f"no {name}")
                    return
                asked = change.get("metadata", {}).pop("resourceVersion", None)
                if asked not in (None, old["metadata"]["resourceVersion"]):
                    self._say(409, "the object has been modified")
                    return
            made = self.api.put(plural, _merged(old or {}, change))
        self._answer(made)

    def do_POST(self) -> None:
        plural, _, _, _ = self._parsed()
        thing = self._body()
        name = thing["metadata"].setdefault("name", f"{thing['metadata'].get('generateName')}1")
        if self._fails("post", plural):
            return
        if name in self.api.objects[plural]:
            self._say(409, f"{name} already exists")
        else:
            self._answer(self.api.put(plural, thing))

    def do_DELETE(self) -> None:
        plural, name, _, _ = self._parsed()
        uid = self._body().get("preconditions", {}).get("uid")
        if self._fails("delete", plural):
            return
        found = self.api.objects[plural].get(name)
        if found is None:
            self._say(404, f"no {name}")
        elif uid not in (None, found["metadata"]["uid"]):
            self._say(409, "uid differs")
        else:
            self.api.drop(plural, name)
            self._answer({})

    def _parsed(self) -> tuple[str, str, str, dict[str, str]]:
        parts = urlsplit(self.path)
        plural, name, subresource, *_ = [
            *parts.path.partition("/namespaces/")[2].split("/")[1:],
            "",
            "",
        ]
        self.api.requests.append(f"{self.command} {plural}/{name}")
        return plural, name, subresource, {k: v[0] for k, v in parse_qs(parts.query).items()}

    def _selected(self, plural: str, query: dict[str, str]) -> list[Object]:
        wanted = dict(pair.split("=") for pair in query.get("labelSelector", "").split(",") if pair)
        name = query.get("fieldSelector", "").partition("metadata.name=")[2]
        return [
            thing
            for thing in self.api.objects[plural].values()
            if wanted.items() <= thing["metadata"].get("labels", {}).items()
            and name in ("", thing["metadata"]["name"])
        ]

    def _watch(self, plural: str, version: int) -> None:
        if version < self.api.oldest:
            gone = {"kind": "Status", "code": 410, "message": "too old resource version"}
            self._stream([json.dumps({"type": "ERROR", "object": gone})])
            return
        changes = self.api.after(version, plural, 1.0)
        self._stream([json.dumps({"type": kind, "object": thing}) for _, kind, thing in changes])

    def _stream(self, lines: list[str]) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if self.api.num_cuts and len(lines) > 1:
            self.api.num_cuts -= 1
            for part in (f"{lines[0]}\n", lines[1][: len(lines[1]) // 2]):
                self._chunk(part)
            self.close_connection = True
            return
        for line in lines:
            self._chunk(f"{line}\n")
        self._chunk("")

    def _chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _fails(self, verb: str, plural: str) -> bool:
        if self.api.statuses:
            self._say(self.api.statuses.pop(0), "as scripted")
            return True
        refusal = self.api.refusals.get(f"{verb} {plural}")
        if refusal is not None:
            self._say(*refusal)
        return refusal is not None

    def _body(self) -> Object:
        found: Object = json.loads(
            self.rfile.read(int(self.headers["Content-Length"] or 0)) or "{}"
        )
        return found

    def _say(self, status: int, message: str) -> None:
        self._answer({"kind": "Status", "message": message}, status)

    def _answer(self, thing: Object, status: int = 200) -> None:
        data = json.dumps(thing).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _merged(old: Object, change: Object) -> Object:
    """JSON merge patch (RFC 7386)."""
    new = dict(old)
    for key, value in change.items():
        if value is None:
            new.pop(key, None)
        elif isinstance(value, dict):
            new[key] = _merged(new[key] if isinstance(new.get(key), dict) else {}, value)
        else:
            new[key] = value
    return new
