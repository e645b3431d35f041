"""Bring a vLLM server up with the right models under a lease, or down; both may be repeated.

The ConfigMap `<server>-model` says which models; the server's init container makes them. Not here:
how a server starts (charts/vllm), which model that is (lineage.py).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from mmar_jobs.cluster.api import Cluster, Conflict, Object, Refused
from mmar_jobs.cluster.diagnosis import Trouble, creation_trouble, pod_trouble
from mmar_jobs.cluster.lease import HOLDER, LEASE, Lease, write
from mmar_jobs.errors import GateError, TryAgain

_LOOK_S: Final = 2.0
_TRIES: Final = 10  # the StatefulSet's controller writes its status into the same object

# URL of a server to the names of the models that it serves.
AskModels = Callable[[str], Sequence[str]]


@dataclass(frozen=True)
class Wanted:
    """What a server is to be up for; `models` has a word a server, the last for all that follow."""

    run_id: str
    iteration: int
    models: tuple[str, ...]
    replicas: int
    lease_s: float

    @property
    def data(self) -> dict[str, str]:
        """Of the ConfigMap."""
        return {
            "run-id": self.run_id,
            "iteration": str(self.iteration),
            "models": ",".join(self.models),
        }


class _HeldByAnother(Exception):
    """Another run has the server."""


@dataclass
class Server:
    """One StatefulSet of charts/vllm."""

    cluster: Cluster
    name: str
    log: Any
    deadline_s: float
    look_s: float = _LOOK_S

    def __post_init__(self) -> None:
        self._end = time.monotonic() + self.deadline_s
        self._said: Trouble | None = None

    def up(self, wanted: Wanted) -> None:
        """Return when all replicas are ready; TryAgain where another run holds the server."""
        found = self._lease(wanted)
        model = self.cluster.find("ConfigMap", self._model)
        serves_other = model is None or model.get("data") != wanted.data
        if serves_other and _num_pods(found):
            self.log.info("server_stopped", server=self.name, reason="it serves other models")
            self._scale(0)
            self._wait(lambda server: not _num_pods(server), "stop")
        if serves_other:
            self.cluster.apply("ConfigMap", _model_of(found, self._model, wanted))
        self._scale(wanted.replicas)
        self._wait(lambda server: _is_ready(server, wanted.replicas), "become ready")
        self.log.info("server_ready", server=self.name, replicas=wanted.replicas, **wanted.data)

    def down(self, run_id: str | None) -> None:
        """Return when no pod is left; a server that another run holds is left alone."""

        def change(found: Object) -> Object:
            lease = Lease.of(found)
            if run_id is not None and lease is not None and lease.holder not in (None, run_id):
                raise _HeldByAnother(str(lease.holder))
            notes = {HOLDER: None, LEASE: None}
            return {"metadata": {"annotations": notes}, "spec": {"replicas": 0}}

        try:
            self._update(change)
        except _HeldByAnother as other:
            self.log.info("server_left", server=self.name, held_by=str(other))
            return
        self._wait(lambda server: not _num_pods(server), "stop")
        self.log.info("server_stopped", server=self.name, reason="asked to")

    @property
    def _model(self) -> str:
        return f"{self.name}-model"

    def _lease(self, wanted: Wanted) -> Object:
        """Take the lease, or extend our own; nobody can take it in between."""

        def change(found: Object) -> Object:
            now, lease = self.cluster.now(), Lease.of(found)
            if lease is not None and lease.until is not None:
                is_others = lease.holder not in (None, wanted.run_id)
                if is_others and not lease.is_over(now):
                    raise TryAgain(
                        f"server {self.name} works for run {lease.holder} until "
                        f"{write(lease.until)}: try again when that is over"
                    )
            until = write(now + timedelta(seconds=wanted.lease_s))
            return {"metadata": {"annotations": {HOLDER: wanted.run_id, LEASE: until}}}

        return self._update(change)

    def _update(self, change: Callable[[Object], Object]) -> Object:
        """Change the server as it was seen; seen anew where it has changed since."""
        for _ in range(_TRIES):
            found = self.cluster.get("StatefulSet", self.name)
            new = change(found)
            version = {"resourceVersion": found["metadata"]["resourceVersion"]}
            new["metadata"] = new["metadata"] | version
            with suppress(Conflict):
                return self.cluster.patch("StatefulSet", self.name, new)
        raise TryAgain(f"server {self.name} keeps changing: is somebody else scaling it?")

    def _scale(self, replicas: int) -> None:
        self.cluster.patch("StatefulSet", self.name, {"spec": {"replicas": replicas}})

    def _wait(self, is_so: Callable[[Object], bool], what: str) -> None:
        while True:
            server = self.cluster.get("StatefulSet", self.name)
            if is_so(server):
                return
            trouble = self._explain(server)
            if time.monotonic() > self._end:
                why = f": {trouble.sentence}" if trouble else ""
                raise TryAgain(
                    f"server {self.name} did not {what} within --deadline-s "
                    f"{self.deadline_s:.0f}{why}"
                )
            time.sleep(self.look_s)

    def _explain(self, server: Object) -> Trouble | None:
        """Say why no pod runs, when that is new."""
        labels = ",".join(f"{k}={v}" for k, v in server["spec"]["selector"]["matchLabels"].items())
        pods = self.cluster.list("Pod", labels=labels)
        try:
            events = self.cluster.list("Event", fields="type=Warning")
        except Refused:
            events = []
        pending = [pod for pod in pods if pod["status"].get("phase") == "Pending"]
        trouble = pod_trouble(pending[-1], events) if pending else None
        if not pods and server["spec"]["replicas"]:
            trouble = creation_trouble(self.name, events)
        if trouble is not None and trouble != self._said:
            self.log.warning("server_waits", server=self.name, reason=trouble.sentence)
        self._said = trouble
        return trouble


def _model_of(server: Object, name: str, wanted: Wanted) -> Object:
    """The ConfigMap, which goes when its server does: nobody else would know it."""
    owner = {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "name": server["metadata"]["name"],
        "uid": server["metadata"]["uid"],
    }
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "ownerReferences": [owner]},
        "data": wanted.data,
    }


def _num_pods(server: Mapping[str, Any]) -> int:
    """Pods that are there or about to be."""
    return max(int(server["spec"].get("replicas") or 0), int(server["status"].get("replicas") or 0))


def _is_ready(server: Mapping[str, Any], replicas: int) -> bool:
    status = server["status"]
    seen = status.get("observedGeneration", 0) >= server["metadata"].get("generation", 0)
    return bool(seen and status.get("readyReplicas", 0) == status.get("replicas") == replicas)


def check_served(urls: Sequence[str], models: Sequence[str], ask: AskModels) -> list[str]:
    """The one model that each URL serves; GateError where that contradicts what was asked for.

    The same word is the same model and another word may be another; that it is the right one is
    proven by each stage, which knows digests and asks a canary.
    """
    name_by_word: dict[str, str] = {}
    names = []
    for number, url in enumerate(urls):
        word = models[min(number, len(models) - 1)]
        served = list(ask(url))
        if len(served) != 1:
            raise GateError(f"{url} serves {len(served)} models ({', '.join(served)}), not one")
        if name_by_word.setdefault(word, served[0]) != served[0]:
            raise GateError(
                f"{url} serves {served[0]} as {word}, another server {name_by_word[word]}: take "
                "the server down and up again"
            )
        names.append(served[0])
    return names
