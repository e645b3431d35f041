"""Tests of running a Job: made or adopted, shown, explained, ended, and deleted when it must be."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from mmar_jobs.cluster.api import Cluster
from mmar_jobs.cluster.diagnosis import Ending
from mmar_jobs.cluster.run_job import JobRun, Patience
from mmar_jobs.errors import ExitCode, SettingsError, TryAgain
from tests.cluster.fake_api import FakeApi, serving
from tests.cluster.things import WORK, ended, manifest, pod, succeeded, waiting, warning
from tests.cluster.things import with_condition as having


@dataclass
class Log:
    """Keeps what is said."""

    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def info(self, event: str, **values: Any) -> None:
        """Structlog's."""
        self.events.append((event, values))

    warning = info

    @property
    def names(self) -> list[str]:
        """The events in order."""
        return [name for name, _ in self.events]


@dataclass
class Scene:
    """A namespace, a client, and what run-job wrote."""

    api: FakeApi
    cluster: Cluster
    log: Log = field(default_factory=Log)
    lines: list[str] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self, patience: Patience = Patience(), **options: Any) -> Ending:  # noqa: B008 - frozen
        """Run WORK's Job."""
        return JobRun(
            self.cluster, manifest(), patience, self.lines.append, self.log, self.stopped, **options
        ).run()

    def meanwhile(self, *acts: Any) -> threading.Thread:
        """Play the controllers, once run-job watches."""

        def play() -> None:
            self.await_request("GET jobs/")
            job = self.api.objects["jobs"][WORK.name]
            for act in acts:
                act(job)

        thread = threading.Thread(target=play)
        thread.start()
        return thread

    def await_request(self, wanted: str) -> None:
        """Wait until run-job has asked for something."""
        for _ in range(400):
            if wanted in self.api.requests:
                return
            time.sleep(0.025)
        raise AssertionError(f"nobody asked {wanted}")

    def finish(self, kind: str = "Complete", **more: str) -> Any:
        """An act: the Job ends."""
        return lambda job: self.api.put("jobs", having(job, kind, **more))

    def show(self, thing: dict[str, Any], *lines: str) -> Any:
        """An act: a pod appears, or changes, and has said some lines."""

        def act(_: Any) -> None:
            stamps = (f"2026-01-01T00:00:00.{n:09}Z" for n in range(len(lines)))
            pairs = zip(stamps, lines, strict=True)
            self.api.logs[thing["metadata"]["name"]] = [f"{a} {b}" for a, b in pairs]
            self.api.put("pods", thing)

        return act


@pytest.fixture
def scene() -> Iterator[Scene]:
    """An empty namespace."""
    api = FakeApi()
    with serving(api) as cluster:
        yield Scene(api, cluster)


def test_a_job_is_made_shown_and_its_outcome_told(scene: Scene) -> None:
    """The stage's lines come out as they are; the outcome is its termination message."""
    player = scene.meanwhile(scene.show(succeeded(learned=True), "one", "two"), scene.finish())
    ending = scene.run()
    player.join()
    assert (ExitCode.DONE, {"learned": True}) == (ending.code, ending.outcome)
    assert ["one", "two"] == scene.lines
    assert ["job_created", "pod_started"] == scene.log.names


def test_a_running_job_is_adopted(scene: Scene) -> None:
    """Nothing is applied; its whole log is shown."""
    scene.api.put("jobs", manifest())
    player = scene.meanwhile(scene.show(succeeded(), "one"), scene.finish())
    assert ExitCode.DONE == scene.run().code
    player.join()
    assert "job_adopted" == scene.log.names[0]
    assert ["one"] == scene.lines
    assert not [request for request in scene.api.requests if request.startswith("PATCH")]


def test_a_finished_job_is_not_done_again(scene: Scene) -> None:
    """Its outcome is read from its pod."""
    scene.api.put("jobs", having(manifest(), "Complete"))
    scene.api.put("pods", succeeded(decision="PROMOTE"))
    assert {"decision": "PROMOTE"} == scene.run(needs_outcome=True).outcome
    assert ["job_adopted"] == scene.log.names


def test_a_finished_job_without_a_word_is_done_again_where_the_word_is_needed(scene: Scene) -> None:
    """Its pod was cleaned away; the stage only verifies what it made."""
    scene.api.put("jobs", having(manifest(), "Complete"))
    assert ExitCode.DONE == scene.run().code

    player = scene.meanwhile(scene.show(succeeded(learned=True)), scene.finish())
    assert {"learned": True} == scene.run(needs_outcome=True).outcome
    player.join()


def test_a_failed_job_is_replaced(scene: Scene) -> None:
    """Retrying is running the same command again."""
    scene.api.put("jobs", having(manifest("--other"), "Failed"))
    player = scene.meanwhile(scene.finish())
    assert ExitCode.DONE == scene.run().code
    player.join()
    assert ["job_replaced", "job_created"] == scene.log.names[:2]


def test_other_work_under_the_name_is_refused(scene: Scene) -> None:
    """With what differs and what to do; the Job stays."""
    scene.api.put("jobs", manifest("--filter.top-k=9"))
    with pytest.raises(SettingsError, match=r"--filter.top-k=9, now .*kubectl delete job"):
        scene.run()
    assert WORK.name in scene.api.objects["jobs"]


@pytest.mark.parametrize("code", [1, 2, 3, 4, 75])
def test_a_failed_stage_gives_its_code(scene: Scene, code: int) -> None:
    """And its last lines are shown before."""
    player = scene.meanwhile(scene.show(ended(code), "why"), scene.finish("Failed"))
    assert code == scene.run().code
    player.join()
    assert ["why"] == scene.lines


def test_asked_to_stop_it_deletes_the_job(scene: Scene) -> None:
    """Exit 75; the next run goes on from what is durable."""
    player = scene.meanwhile(scene.show(pod("Running")), lambda _: scene.stopped.set())
    with pytest.raises(TryAgain, match="SIGTERM"):
        scene.run()
    player.join()
    assert {} == scene.api.objects["jobs"]


def test_a_job_beyond_its_deadline_is_deleted(scene: Scene) -> None:
    """Exit 75."""
    with pytest.raises(TryAgain, match="--deadline-s 0"):
        scene.run(Patience(deadline_s=0.2))
    assert {} == scene.api.objects["jobs"]


def test_a_job_that_others_delete_is_try_again(scene: Scene) -> None:
    """Somebody cleaned up, or another run-job was stopped."""
    player = scene.meanwhile(lambda _: scene.api.drop("jobs", WORK.name))
    with pytest.raises(TryAgain, match="deleted by somebody else"):
        scene.run()
    player.join()


def test_what_nobody_repairs_is_given_up(scene: Scene) -> None:
    """Said once as a reason to wait, then as the reason to give up and delete the Job."""
    bad = waiting("CreateContainerConfigError", 'secret "s3" not found')
    player = scene.meanwhile(scene.show(bad))
    with pytest.raises(SettingsError, match="needs Secret s3"):
        scene.run(Patience(repair_s=0.5))
    player.join()
    assert 1 == scene.log.names.count("job_waits")
    assert {} == scene.api.objects["jobs"]


def test_a_used_up_quota_is_try_again(scene: Scene) -> None:
    """Others may finish."""
    event = warning("FailedCreate", "forbidden: exceeded quota: gpus, used: 4", WORK.name)
    scene.api.put("events", event)
    with pytest.raises(TryAgain, match="quota is used up"):
        scene.run(Patience(repair_s=0.5))


def test_a_manifest_that_the_server_refuses_is_said_at_once(scene: Scene) -> None:
    """The server's own words, exit 2."""
    scene.api.refusals["patch jobs"] = (422, "spec.template: Invalid value")
    with pytest.raises(SettingsError, match="Invalid value"):
        scene.run()


def test_events_that_are_hidden_hide_only_reasons(scene: Scene) -> None:
    """A role without events still runs Jobs."""
    scene.api.refusals["get events"] = (403, "forbidden")
    player = scene.meanwhile(scene.show(succeeded()), scene.finish())
    assert ExitCode.DONE == scene.run().code
    player.join()
