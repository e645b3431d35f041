"""Objects of the cluster as JSON, over the official client: credentials, TLS, verbs, errors.

Reads are tried again while the API server is away; `follow` survives lost connections and versions
that are too old. Not here: what the objects mean.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final, NamedTuple, TypeVar

import urllib3
from kubernetes import client, config
from kubernetes.config.config_exception import ConfigException
from kubernetes.watch.watch import iter_resp_lines

from mmar_jobs.errors import DataError, SettingsError, TryAgain

Object = dict[str, Any]
T = TypeVar("T")

FIELD_MANAGER: Final = "mmar-jobs"
_PATHS: Final = {
    "Job": "/apis/batch/v1/namespaces/{namespace}/jobs",
    "StatefulSet": "/apis/apps/v1/namespaces/{namespace}/statefulsets",
    "Workflow": "/apis/argoproj.io/v1alpha1/namespaces/{namespace}/workflows",
    "ConfigMap": "/api/v1/namespaces/{namespace}/configmaps",
    "Event": "/api/v1/namespaces/{namespace}/events",
    "Pod": "/api/v1/namespaces/{namespace}/pods",
}
_TIMEOUT_S: Final = (5.0, 30.0)  # connect, read
_WATCH_S: Final = 290  # the server ends a watch after this; its own least default is 300
_OUTAGE_S: Final = 120.0  # a control plane that is being upgraded is away for a minute
_PAUSE_S: Final = 1.0
_PAUSE_MAX_S: Final = 10.0


class NotFound(DataError):
    """There is no object of that name."""


class Refused(SettingsError):
    """The API server understood and said no: RBAC, quota, admission, or an invalid object."""


class Conflict(SettingsError):
    """The object exists, or changed meanwhile, or a field of it cannot be changed."""


class Change(NamedTuple):
    """An object as it is now; None: it is gone."""

    name: str
    object: Object | None


@dataclass
class Cluster:
    """One namespace of a cluster."""

    client: Any
    namespace: str
    outage_s: float = _OUTAGE_S
    _date: str = ""

    def now(self) -> datetime:
        """The API server's time at its last answer: leases are written and read by one clock."""
        return parsedate_to_datetime(self._date) if self._date else datetime.now(UTC)

    def get(self, kind: str, name: str) -> Object:
        """The object; NotFound where there is none."""
        return self._read(lambda: self._json("GET", self._path(kind, name)))

    def find(self, kind: str, name: str) -> Object | None:
        """The object, or None."""
        try:
            return self.get(kind, name)
        except NotFound:
            return None

    def list(self, kind: str, *, labels: str = "", fields: str = "") -> list[Object]:
        """All objects that match both selectors."""
        query = _selectors(labels, fields)
        items: list[Object] = self._read(lambda: self._json("GET", self._path(kind), query))[
            "items"
        ]
        return items

    def apply(self, kind: str, manifest: Object) -> Object:
        """Create the object or change it to what `manifest` says of it (server-side apply).

        Applying twice does nothing, so it is tried again like a read.
        """
        path = self._path(kind, manifest["metadata"]["name"])
        query = [("fieldManager", FIELD_MANAGER), ("force", "true")]
        media_type = "application/apply-patch+yaml"
        return self._read(lambda: self._json("PATCH", path, query, manifest, media_type))

    def create(self, kind: str, manifest: Object) -> Object:
        """Create the object; Conflict where it exists."""
        return self._json("POST", self._path(kind), [("fieldManager", FIELD_MANAGER)], manifest)

    def patch(self, kind: str, name: str, change: Object, *, subresource: str = "") -> Object:
        """Merge `change` into the object; with a resourceVersion in it, only into that version."""
        path = self._path(kind, name, subresource)
        query = [("fieldManager", FIELD_MANAGER)]
        media_type = "application/merge-patch+json"
        return self._json("PATCH", path, query, change, media_type)

    def delete(self, kind: str, name: str, *, uid: str | None = None) -> None:
        """Delete the object and then what it owns; quiet when it is gone, or has another uid."""
        body: Object = {"propagationPolicy": "Foreground"}
        if uid is not None:
            body["preconditions"] = {"uid": uid}
        try:
            self._read(lambda: self._json("DELETE", self._path(kind, name), body=body))
        except (NotFound, Conflict):
            return

    def log_lines(self, pod: str, query: Mapping[str, str]) -> Iterator[str]:
        """Lines of one container's log, from one request; ends when the server ends it."""
        path = self._path("Pod", pod, "log")
        with self._opened("GET", path, list(query.items())) as response:
            yield from iter_resp_lines(response)

    def follow(self, kind: str, *, labels: str = "", fields: str = "") -> Iterator[Change]:
        """What is there now, then every change, for ever; TryAgain when the server stays away."""
        selectors = _selectors(labels, fields)
        known: set[str] = set()
        while True:
            found = self._read(lambda: self._json("GET", self._path(kind), selectors))
            names = {item["metadata"]["name"] for item in found["items"]}
            yield from (Change(name, None) for name in sorted(known - names))
            yield from (Change(item["metadata"]["name"], item) for item in found["items"])
            known = names
            version = found["metadata"]["resourceVersion"]
            for change in self._watch(kind, selectors, version):
                (known.discard if change.object is None else known.add)(change.name)
                yield change

    def _watch(
        self, kind: str, selectors: Sequence[tuple[str, str]], version: str
    ) -> Iterator[Change]:
        """Changes after `version`; ends when that is too old and all must be listed anew."""
        while True:
            query = [
                *selectors,
                ("watch", "true"),
                ("allowWatchBookmarks", "true"),
                ("resourceVersion", version),
                ("timeoutSeconds", str(_WATCH_S)),
            ]
            try:
                with self._opened("GET", self._path(kind), query, read_s=_WATCH_S + 30) as response:
                    for line in iter_resp_lines(response):
                        event = json.loads(line)
                        if event["type"] == "ERROR":
                            return
                        metadata = event["object"]["metadata"]
                        version = metadata["resourceVersion"]
                        if event["type"] != "BOOKMARK":
                            is_gone = event["type"] == "DELETED"
                            yield Change(metadata["name"], None if is_gone else event["object"])
            except (TryAgain, ValueError):  # cut off, in the middle of a line perhaps
                return

    def _path(self, kind: str, name: str = "", subresource: str = "") -> str:
        parts = [_PATHS[kind].format(namespace=self.namespace), name, subresource]
        return "/".join(part for part in parts if part)

    def _read(self, ask: Callable[[], T]) -> T:
        """Ask, again while the server is away."""
        end = time.monotonic() + self.outage_s
        pause_s = _PAUSE_S
        while True:
            try:
                return ask()
            except TryAgain:
                if time.monotonic() + pause_s > end:
                    raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)

    def _json(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]] = (),
        body: Object | None = None,
        media_type: str = "application/json",
    ) -> Object:
        with self._opened(method, path, query, body=body, media_type=media_type) as response:
            found: Object = json.loads(response.data)
        return found

    @contextmanager
    def _opened(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]] = (),
        *,
        body: Object | None = None,
        media_type: str = "application/json",
        read_s: float = _TIMEOUT_S[1],
    ) -> Iterator[Any]:
        """A response that says yes, not yet read; errors are said in this project's words."""
        request = self.client.param_serialize(
            method,
            path,
            query_params=list(query),
            header_params={"Accept": "application/json", "Content-Type": media_type},
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            response = self.client.call_api(
                *request, _request_timeout=(_TIMEOUT_S[0], read_s)
            ).response
            try:
                self._date = response.headers.get("Date", "")
                if not HTTPStatus.OK <= response.status < HTTPStatus.MULTIPLE_CHOICES:
                    raise _explain(response.status, response.data, path)
                yield response
            finally:
                response.close()
                response.release_conn()
        except (urllib3.exceptions.HTTPError, client.ApiException) as error:
            raise TryAgain(
                f"the API server {self.client.configuration.host} does not answer "
                f"({type(error).__name__}): run the same command again"
            ) from error


def open_cluster(namespace: str | None) -> Cluster:
    """The cluster that the environment names: a pod's own service account, or a kubeconfig."""
    settings = client.Configuration()
    try:
        try:
            config.load_incluster_config(client_configuration=settings)
            default = _own_namespace()
        except ConfigException:
            config.load_kube_config(client_configuration=settings)
            _, context = config.list_kube_config_contexts()
            default = context["context"].get("namespace", "default")
    except ConfigException as error:
        raise SettingsError(
            f"no cluster: {error}: set KUBECONFIG, or run in a pod with a service account token"
        ) from None
    # Answers are repeated here, where it is known which requests may be.
    settings.retries = False
    if not settings.verify_ssl:
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    return Cluster(client.ApiClient(settings), namespace or default)


def _own_namespace() -> str:
    path = config.incluster_config.SERVICE_CERT_FILENAME.replace("ca.crt", "namespace")
    with open(path, encoding="utf-8") as file:  # noqa: PTH123 - the client's own constant
        return file.read().strip()


def _selectors(labels: str, fields: str) -> list[tuple[str, str]]:
    found = [("labelSelector", labels), ("fieldSelector", fields)]
    return [(name, value) for name, value in found if value]


def _explain(status: int, body: bytes, path: str) -> Exception:
    try:
        message = json.loads(body)["message"]
    except (ValueError, KeyError, TypeError):
        message = body[:200].decode(errors="replace") or HTTPStatus(status).phrase
    where = path.rpartition("/namespaces/")[2]
    if status == HTTPStatus.NOT_FOUND:
        return NotFound(f"{where}: {message}")
    if status == HTTPStatus.CONFLICT:
        return Conflict(f"{where}: {message}")
    if status == HTTPStatus.UNAUTHORIZED:
        return SettingsError("the cluster does not know these credentials: log in again")
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return TryAgain(f"{where}: the API server answers {status}: {message}")
    return Refused(f"{where}: {message}")
