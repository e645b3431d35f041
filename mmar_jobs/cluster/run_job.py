"""Run one Job to its end: make or adopt it, show its log, explain what keeps it, say how it ended.

Not here: flags and exit codes of the command (run_job_command.py), what Kubernetes' states mean
(diagnosis.py).
"""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from mmar_jobs.cluster.api import Change, Cluster, Object, Refused
from mmar_jobs.cluster.diagnosis import Ending, Remedy, Trouble, ending_of, trouble_of
from mmar_jobs.cluster.jobs import DIGEST, Fate, condition, differences, fate_of
from mmar_jobs.cluster.pod_logs import has_log, read_log
from mmar_jobs.errors import MmarError, SettingsError, TryAgain

_LOOK_S: Final = 1.0  # at most this long until SIGTERM and deadlines are noticed
_EXPLAIN_S: Final = 5.0  # between questions why a pod waits
_LAST_LINES_S: Final = 15.0  # for the rest of a log after its Job has ended
_CREATE: Final = 3  # a Job may be deleted by others while it is adopted


@dataclass(frozen=True)
class Patience:
    """How long to wait, seconds."""

    deadline_s: float | None = None  # for the whole Job; None: as long as it takes
    repair_s: float = 300.0  # for somebody to repair what does not heal by itself


@dataclass
class JobRun:
    """One Job that is waited for."""

    cluster: Cluster
    manifest: Object
    patience: Patience
    write_line: Callable[[str], None]  # where the stage's own lines go
    log: Any
    stopped: threading.Event
    needs_outcome: bool = False

    _job: Object | None = None
    _pods: dict[str, Object] = field(default_factory=dict)
    _tails: dict[str, threading.Thread] = field(default_factory=dict)
    _changes: queue.Queue[tuple[str, Change | MmarError]] = field(default_factory=queue.Queue)
    _trouble: Trouble | None = None
    _trouble_since: float = 0.0
    _explained: float = 0.0

    @property
    def name(self) -> str:
        """The Job's."""
        name: str = self.manifest["metadata"]["name"]
        return name

    def run(self) -> Ending:
        """Wait for the Job's end. One that cannot get on, or whose time is over, is deleted.

        Raises SettingsError where it never will get on, TryAgain where it may another time.
        """
        end = _after(self.patience.deadline_s)
        self._job, is_done = self._obtain(end)
        if is_done:
            ending = ending_of(self._job, self._list_pods())
            if ending.outcome is not None or not self.needs_outcome:
                self.log.info("job_adopted", job=self.name, state="done")
                return ending
            # Its word has gone with its pod; the stage only verifies what it has made.
            self._remove(end)
            self._job, _ = self._obtain(end)
        self._follow("Job", fields=f"metadata.name={self.name}")
        self._follow("Pod", labels=f"batch.kubernetes.io/job-name={self.name}")
        while True:
            self._take()
            self._check_stopped(end)
            if self._job is None:
                raise TryAgain(f"Job {self.name} was deleted by somebody else")
            if condition(self._job, "Complete") or condition(self._job, "Failed"):
                return self._finish()
            self._explain()

    def _obtain(self, end: float) -> tuple[Object, bool]:
        """The Job, made or adopted, and whether it has done its work already."""
        digest = self.manifest["metadata"]["annotations"][DIGEST]
        refused: Refused | None = None
        while True:
            found = self.cluster.find("Job", self.name)
            fate = fate_of(found, digest)
            if fate is Fate.OTHER:
                assert found is not None
                raise SettingsError(
                    f"Job {self.name} exists with other settings "
                    f"({differences(found, self.manifest)}): use those, take another --run-id, or "
                    f"delete it first (kubectl delete job {self.name})"
                )
            if fate in (Fate.DONE, Fate.RUNNING):
                assert found is not None
                if fate is Fate.RUNNING:
                    self.log.info("job_adopted", job=self.name, state="running")
                return found, fate is Fate.DONE
            if fate is Fate.ABSENT:
                if refused is not None:
                    raise refused
                try:
                    made = self.cluster.apply("Job", self.manifest)
                except Refused as error:  # the manifest is wrong, or another was quicker
                    refused = error
                    continue
                self.log.info("job_created", job=self.name)
                return made, False
            if fate is Fate.FAILED:
                assert found is not None
                self.log.info("job_replaced", job=self.name, reason="the last one failed")
                self.cluster.delete("Job", self.name, uid=found["metadata"]["uid"])
            self._check_stopped(end)
            time.sleep(_LOOK_S)

    def _follow(self, kind: str, **selectors: str) -> None:
        """Changes of a kind into the queue, from a thread that ends with the process."""

        def run() -> None:
            try:
                for change in self.cluster.follow(kind, **selectors):
                    self._changes.put((kind, change))
            except MmarError as error:
                self._changes.put((kind, error))

        threading.Thread(target=run, daemon=True, name=f"follow-{kind}").start()

    def _take(self) -> None:
        """Wait a moment for changes and take all that there are."""
        try:
            kind, change = self._changes.get(timeout=_LOOK_S)
            while True:
                self._note(kind, change)
                kind, change = self._changes.get_nowait()
        except queue.Empty:
            return

    def _note(self, kind: str, change: Change | MmarError) -> None:
        if isinstance(change, MmarError):
            raise change
        if kind == "Job":
            self._job = change.object
        elif change.object is None:
            if self._pods.pop(change.name, None) is not None:
                self.log.info("pod_gone", pod=change.name)
        else:
            self._pods[change.name] = change.object
            self._show(change.object)

    def _show(self, pod: Object) -> None:
        """Begin to show a pod's log once it has one."""
        name = pod["metadata"]["name"]
        if name in self._tails or not has_log(pod):
            return
        self.log.info("pod_started", pod=name, node=pod["spec"].get("nodeName"))

        def run() -> None:
            for line in read_log(self.cluster, name, follow=True):
                self.write_line(line)

        self._tails[name] = threading.Thread(target=run, daemon=True, name=f"log-{name}")
        self._tails[name].start()

    def _explain(self) -> None:
        """Say why nothing runs, when that is new; give up on what nobody repairs."""
        now = time.monotonic()
        if now - self._explained < _EXPLAIN_S or self._job is None:
            return
        self._explained = now
        pods = self._ordered()
        if any(pod["status"].get("phase") == "Running" for pod in pods):
            self._trouble = None
            return
        trouble = trouble_of(self._job, pods, self._events())
        if trouble != self._trouble:
            if trouble is not None:
                self.log.warning("job_waits", job=self.name, reason=trouble.sentence)
            if trouble is None or self._trouble is None or trouble.remedy != self._trouble.remedy:
                self._trouble_since = now
            self._trouble = trouble
        waited_s = now - self._trouble_since
        if trouble is None or trouble.remedy is Remedy.TIME or waited_s < self.patience.repair_s:
            return
        self._delete()
        kind = SettingsError if trouble.remedy is Remedy.PEOPLE else TryAgain
        raise kind(f"Job {self.name} {trouble.sentence}; it was given up after {waited_s:.0f} s")

    def _events(self) -> list[Object]:
        """Warnings about the Job and its pods, oldest first; none where they are hidden."""
        try:
            events = self.cluster.list("Event", fields="type=Warning")
        except Refused:
            return []
        names = {self.name, *self._pods}
        mine = [event for event in events if event["involvedObject"].get("name") in names]
        return sorted(mine, key=lambda event: str(event.get("lastTimestamp") or ""))

    def _ordered(self) -> list[Object]:
        return by_age(self._pods.values())

    def _list_pods(self) -> list[Object]:
        labels = f"batch.kubernetes.io/job-name={self.name}"
        return by_age(self.cluster.list("Pod", labels=labels))

    def _finish(self) -> Ending:
        """Show the rest of the logs, then say how it ended."""
        assert self._job is not None
        pods = self._list_pods() or self._ordered()
        for pod in pods:
            self._show(pod)
        end = time.monotonic() + _LAST_LINES_S
        for tail in self._tails.values():
            tail.join(max(0.0, end - time.monotonic()))
        return ending_of(self._job, pods)

    def _check_stopped(self, end: float) -> None:
        if self.stopped.is_set():
            self._delete()
            raise TryAgain(f"asked to stop (SIGTERM): Job {self.name} is deleted")
        if time.monotonic() > end:
            self._delete()
            raise TryAgain(
                f"Job {self.name} took more than --deadline-s {self.patience.deadline_s:.0f}: it "
                "is deleted; run the same command again to go on"
            )

    def _delete(self) -> None:
        """Delete the Job that was waited for, and no other of its name."""
        if self._job is not None:
            self.cluster.delete("Job", self.name, uid=self._job["metadata"]["uid"])

    def _remove(self, end: float) -> None:
        self._delete()
        while self.cluster.find("Job", self.name) is not None:
            self._check_stopped(end)
            time.sleep(_LOOK_S)


def _after(seconds: float | None) -> float:
    return float("inf") if seconds is None else time.monotonic() + seconds


def by_age(pods: Any) -> list[Object]:
    """Objects in the order in which they were made."""
    return sorted(
        pods, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"])
    )
