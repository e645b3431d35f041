"""Tests of servers: brought up under a lease with the right models, taken down, and reaped."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mmar_jobs.cluster.api import Cluster
from mmar_jobs.cluster.lease import HOLDER, LEASE, Lease, write
from mmar_jobs.cluster.reap import reap
from mmar_jobs.cluster.scale import Server, Wanted, check_served
from mmar_jobs.errors import GateError, TryAgain
from tests.cluster.fake_api import FakeApi, serving
from tests.cluster.test_run_job import Log

HOUR = timedelta(hours=1)


@dataclass
class Scene:
    """A namespace with one server, whose controller brings pods up at once."""

    api: FakeApi
    cluster: Cluster
    log: Log = field(default_factory=Log)
    ended: threading.Event = field(default_factory=threading.Event)

    def server(self, deadline_s: float = 10) -> Server:
        """What the command works with."""
        return Server(self.cluster, "vllm", self.log, deadline_s, look_s=0.05)

    def put(self, *, replicas: int = 0, holder: str | None = None, until: Any = None) -> None:
        """The StatefulSet as it is, its pods already there: its controller has nothing to do."""
        notes = {HOLDER: holder, LEASE: until if isinstance(until, str) else until and write(until)}
        self.api.put(
            "statefulsets",
            {
                "metadata": {
                    "name": "vllm",
                    "labels": {"mmar-jobs/reap": "true"},
                    "annotations": {name: value for name, value in notes.items() if value},
                    "generation": 1,
                },
                "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "vllm"}}},
                "status": _status(replicas),
            },
        )

    @property
    def now(self) -> dict[str, Any]:
        """The StatefulSet."""
        return self.api.objects["statefulsets"]["vllm"]

    def control(self) -> None:
        """Do what the StatefulSet's controller does, until the test ends."""
        while not self.ended.wait(0.02):
            with self.api.changed:  # between reading and writing nobody else may write
                server = self.api.objects["statefulsets"].get("vllm")
                if server is None or server["status"].get("replicas") == server["spec"]["replicas"]:
                    continue
                status = _status(server["spec"]["replicas"])
                self.api.put("statefulsets", server | {"status": status})


def _status(num_pods: int) -> dict[str, int]:
    return {"replicas": num_pods, "readyReplicas": num_pods, "observedGeneration": 1}


@pytest.fixture
def scene() -> Iterator[Scene]:
    """A namespace with a controller."""
    api = FakeApi()
    with serving(api) as cluster:
        found = Scene(api, cluster)
        controller = threading.Thread(target=found.control)
        controller.start()
        yield found
        found.ended.set()
        controller.join()


def wanted(run_id: str = "run", **changes: Any) -> Wanted:
    """A server for the first iteration."""
    known: dict[str, Any] = {"iteration": 1, "models": ("parent",), "replicas": 1, "lease_s": 3600}
    return Wanted(run_id, **known | changes)


def test_a_server_comes_up_with_its_models_and_a_lease(scene: Scene) -> None:
    """The ConfigMap is there before the first pod, which reads it."""
    scene.put()
    scene.server().up(wanted(models=("parent", "child")))
    model = scene.api.objects["configmaps"]["vllm-model"]["data"]
    assert {"run-id": "run", "iteration": "1", "models": "parent,child"} == model
    lease = Lease.of(scene.now)
    assert lease is not None
    assert lease.until is not None
    assert "run" == lease.holder
    assert timedelta(minutes=59) < lease.until - datetime.now(UTC) < timedelta(minutes=61)
    asked = scene.api.requests
    up = [n for n, request in enumerate(asked) if request == "PATCH statefulsets/vllm"][-1]
    assert asked.index("PATCH configmaps/vllm-model") < up


def test_a_server_with_these_models_stays_up(scene: Scene) -> None:
    """A retried step loses no minute of loading."""
    scene.put()
    scene.server().up(wanted())
    scene.server().up(wanted())
    assert "server_stopped" not in scene.log.names


def test_a_server_with_other_models_is_stopped_first(scene: Scene) -> None:
    """No pod may serve what the ConfigMap does not say."""
    scene.put()
    scene.server().up(wanted())
    scene.server().up(wanted(iteration=2))
    assert ["server_ready", "server_stopped", "server_ready"] == scene.log.names
    assert "2" == scene.api.objects["configmaps"]["vllm-model"]["data"]["iteration"]


def test_a_server_of_another_run_is_not_taken(scene: Scene) -> None:
    """Exit 75, until its lease is over."""
    scene.put(replicas=1, holder="other", until=datetime.now(UTC) + HOUR)
    with pytest.raises(TryAgain, match="works for run other until"):
        scene.server().up(wanted())
    scene.put(replicas=1, holder="other", until=datetime.now(UTC) - HOUR)
    scene.server().up(wanted())
    assert "run" == scene.now["metadata"]["annotations"][HOLDER]


def test_of_two_runs_one_gets_the_server(scene: Scene) -> None:
    """Both have seen it free; the version that they saw decides, and the loser looks again."""
    scene.put()
    seen = scene.cluster.get("StatefulSet", "vllm")
    scene.server().up(wanted("first"))
    second = scene.server()
    second.cluster = _Stale(scene.cluster, [seen])  # type: ignore[assignment]
    with pytest.raises(TryAgain, match="works for run first"):
        second.up(wanted("second"))


@dataclass
class _Stale:
    """A client that saw the server a moment ago."""

    cluster: Cluster
    seen: list[dict[str, Any]]

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """What was, the first time."""
        return self.seen.pop() if self.seen else self.cluster.get(kind, name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cluster, name)


def test_a_server_that_does_not_come_up_says_why(scene: Scene) -> None:
    """Once as a warning, and as the reason to give up."""
    scene.ended.set()
    scene.put()
    pending = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}
    scene.api.put(
        "pods",
        {
            "metadata": {"name": "vllm-0", "namespace": "ns", "labels": {"app": "vllm"}},
            "status": {"phase": "Pending", "conditions": [pending]},
        },
    )
    with pytest.raises(TryAgain, match="--deadline-s 0: waits for its queue"):
        scene.server(deadline_s=0.3).up(wanted())
    assert 1 == scene.log.names.count("server_waits")


def test_taking_down_gives_the_lease_back(scene: Scene) -> None:
    """And waits until the GPUs are free."""
    scene.put()
    scene.server().up(wanted())
    scene.server().down("run")
    assert 0 == scene.now["status"]["replicas"]
    assert Lease.of(scene.now) is None


def test_taking_down_leaves_the_server_of_another_run(scene: Scene) -> None:
    """An exit handler may run long after its workflow lost the server."""
    scene.put(replicas=1, holder="other", until=datetime.now(UTC) + HOUR)
    scene.server().down("run")
    assert (1, ["server_left"]) == (scene.now["spec"]["replicas"], scene.log.names)


@pytest.mark.parametrize("until", [datetime.now(UTC) - HOUR, "when I am done"])
def test_a_server_whose_lease_is_over_is_reaped(scene: Scene, until: Any) -> None:
    """With an event that says whose it was."""
    scene.put(replicas=1, holder="gone", until=until)
    assert ["vllm"] == reap(scene.cluster, scene.log)
    assert 0 == scene.now["spec"]["replicas"]
    [event] = scene.api.objects["events"].values()
    assert "the lease of run gone ended" in event["message"]
    assert [] == reap(scene.cluster, scene.log)


@pytest.mark.parametrize(
    ("replicas", "until"), [(1, None), (1, datetime.now(UTC) + HOUR), (0, datetime.now(UTC) - HOUR)]
)
def test_other_servers_are_not_reaped(scene: Scene, replicas: int, until: Any) -> None:
    """In use, stopped already, or brought up by a person without a lease."""
    scene.put(replicas=replicas, holder="run", until=until)
    before = time.monotonic()
    assert [] == reap(scene.cluster, scene.log)
    assert replicas == scene.now["spec"]["replicas"]
    assert time.monotonic() - before < 5


def test_leases_are_read_by_the_servers_clock(scene: Scene) -> None:
    """A pod whose clock is wrong neither reaps nor keeps too long."""
    scene.put()
    scene.cluster.get("StatefulSet", "vllm")
    assert abs(scene.cluster.now() - datetime.now(UTC)) < timedelta(seconds=5)
    assert scene.cluster._date


def test_a_word_is_one_model_on_all_servers() -> None:
    """What each serves is asked of each; stages prove that it is the right one."""
    names = {"a": ["mmar-1"], "b": ["mmar-2"], "c": ["mmar-2"]}
    models = ("parent", "child")
    assert ["mmar-1", "mmar-2", "mmar-2"] == check_served("abc", models, names.__getitem__)
    with pytest.raises(GateError, match="serves mmar-2 as child, another server mmar-3"):
        check_served("abc", models, (names | {"b": ["mmar-3"]}).__getitem__)
    with pytest.raises(GateError, match="serves 2 models"):
        check_served("a", models, {"a": ["x", "y"]}.__getitem__)
