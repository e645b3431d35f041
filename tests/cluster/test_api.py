"""Tests of the client: errors in our words, reads through outages, watches that resume."""

import itertools
from collections.abc import Iterator

import pytest

from mmar_jobs.cluster.api import Change, Cluster, Conflict, NotFound, Refused
from mmar_jobs.cluster.pod_logs import read_log
from mmar_jobs.errors import SettingsError, TryAgain
from tests.cluster.fake_api import FakeApi
from tests.cluster.things import ended, manifest, pod


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, NotFound), (409, Conflict), (403, Refused), (422, Refused), (401, SettingsError)],
)
def test_what_the_server_refuses_is_said_once(
    api: FakeApi, cluster: Cluster, status: int, kind: type[Exception]
) -> None:
    """Asking again would change nothing."""
    api.statuses = [status]
    with pytest.raises(kind):
        cluster.get("Pod", "p")
    assert ["GET pods/p"] == api.requests


def test_a_server_that_is_away_is_asked_again(api: FakeApi, cluster: Cluster) -> None:
    """503 and 429 pass; the third answer counts."""
    api.put("pods", pod())
    api.statuses = [503, 429]
    assert "p" == cluster.get("Pod", "p")["metadata"]["name"]
    assert 3 == len(api.requests)


def test_a_server_that_stays_away_is_try_again(api: FakeApi, cluster: Cluster) -> None:
    """Exit 75, with the reason."""
    api.statuses = [503] * 20
    cluster.outage_s = 1.5
    with pytest.raises(TryAgain, match="503"):
        cluster.get("Pod", "p")


def test_applying_twice_is_applying_once(api: FakeApi, cluster: Cluster) -> None:
    """Server-side apply makes or changes; the name is the manifest's."""
    for _ in range(2):
        cluster.apply("Job", manifest())
    assert ["run-i2-filter"] == list(api.objects["jobs"])


def test_only_the_object_that_was_meant_is_deleted(api: FakeApi, cluster: Cluster) -> None:
    """A new Job under an old name has another uid and stays."""
    job = api.put("jobs", manifest())
    cluster.delete("Job", job["metadata"]["name"], uid="another")
    assert job["metadata"]["name"] in api.objects["jobs"]
    cluster.delete("Job", job["metadata"]["name"], uid=job["metadata"]["uid"])
    assert {} == api.objects["jobs"]


def _phases(changes: Iterator[Change], num: int) -> list[tuple[str, str | None]]:
    return [
        (name, None if thing is None else thing["status"]["phase"])
        for name, thing in itertools.islice(changes, num)
    ]


def test_a_watch_that_is_cut_goes_on(api: FakeApi, cluster: Cluster) -> None:
    """Two connections break in the middle of an event; the last state of both pods arrives."""
    changes = cluster.follow("Pod")
    api.put("pods", pod("Pending", name="a"))
    assert [("a", "Pending")] == _phases(changes, 1)
    api.num_cuts = 2
    api.put("pods", pod("Running", name="a"))
    api.put("pods", pod("Pending", name="b"))
    api.put("pods", pod("Running", name="b"))
    assert {"a": "Running", "b": "Running"} == dict(_phases(changes, 3))
    assert 1 >= api.num_cuts


def test_a_version_that_is_gone_is_listed_anew(api: FakeApi, cluster: Cluster) -> None:
    """What was deleted while nobody watched is told too."""
    api.put("pods", pod("Running", name="a"))
    api.put("pods", pod("Running", name="b"))
    changes = cluster.follow("Pod")
    assert [("a", "Running"), ("b", "Running")] == _phases(changes, 2)
    api.drop("pods", "a")
    api.put("pods", ended(0, name="b"))
    api.forget()
    # The history is there but may not be read from before.
    assert [("a", None), ("b", "Succeeded")] == _phases(changes, 2)


def test_a_log_that_is_cut_has_each_line_once(api: FakeApi, cluster: Cluster) -> None:
    """Within one second, which is all that a server can be asked for."""
    api.put("pods", ended(0))
    api.logs["p"] = [f"2026-01-01T00:00:00.{n:09}Z line {n}" for n in range(6)]
    api.num_cuts = 3
    assert [f"line {n}" for n in range(6)] == list(read_log(cluster, "p", follow=True))
    assert 0 == api.num_cuts
