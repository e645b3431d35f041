"""Tests of what Kubernetes' states mean: one sentence, who can help, and an exit code."""

from typing import Any

import pytest

from mmar_jobs.cluster.diagnosis import Remedy, death_of, ending_of, trouble_of
from mmar_jobs.errors import ExitCode
from tests.cluster.things import WORK, ended, manifest, pod, succeeded, waiting, warning
from tests.cluster.things import with_condition as having

UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
}
QUOTA = (
    'Error creating: pods "run-i2-filter-x" is forbidden: exceeded quota: gpus, requested: '
    "requests.nvidia.com/gpu=4, used: 4, limited: 4"
)
SECURITY = (
    'Error creating: pods "x" is forbidden: violates PodSecurity "restricted:latest": privileged'
)
PULL = 'Failed to pull image "mmar-jobs/cpu": not found'


@pytest.mark.parametrize(
    ("pods", "events", "remedy", "words"),
    [
        (
            [pod("Pending", state={}, conditions=[UNSCHEDULABLE])],
            [],
            Remedy.TIME,
            "waits for a node",
        ),
        ([waiting("ImagePullBackOff")], [warning("Failed", PULL)], Remedy.PEOPLE, "not found"),
        ([waiting("ErrImageNeverPull")], [], Remedy.PEOPLE, "image mmar-jobs/cpu cannot be pulled"),
        (
            [waiting("CreateContainerConfigError", 'secret "s3" not found')],
            [],
            Remedy.PEOPLE,
            "needs Secret s3, which namespace ns lacks",
        ),
        (
            [waiting("CreateContainerConfigError", 'configmap "c" not found')],
            [],
            Remedy.PEOPLE,
            "needs ConfigMap c,",
        ),
        (
            [waiting("ContainerCreating")],
            [warning("FailedMount", 'MountVolume.SetUp failed: secret "k" not found')],
            Remedy.PEOPLE,
            "needs Secret k,",
        ),
        (
            [waiting("ContainerCreating")],
            [warning("FailedMount", "timed out")],
            Remedy.TIME,
            "waits for a volume: timed out",
        ),
        (
            [waiting("RunContainerError", "exec: mmar-jobs: no such file")],
            [],
            Remedy.PEOPLE,
            "container stage cannot be made: exec: mmar-jobs",
        ),
        ([], [warning("FailedCreate", QUOTA, WORK.name)], Remedy.QUOTA, "quota is used up (gpus,"),
        (
            [],
            [warning("FailedCreate", SECURITY, WORK.name)],
            Remedy.PEOPLE,
            'no pod can be made: violates PodSecurity "restricted',
        ),
    ],
)
def test_why_a_job_does_not_run(pods: Any, events: Any, remedy: Remedy, words: str) -> None:
    """Each has one sentence, and says whether waiting can help."""
    found = trouble_of(manifest(), pods, events)
    assert found is not None
    assert remedy is found.remedy
    assert words in found.sentence


def test_a_suspended_job_waits_for_its_queue() -> None:
    """Kueue holds Jobs back by suspending them."""
    job = manifest()
    job["spec"]["suspend"] = True
    found = trouble_of(job, [], [])
    assert found is not None
    assert (Remedy.TIME, True) == (found.remedy, "queue" in found.sentence)


@pytest.mark.parametrize("pods", [[], [waiting("ContainerCreating")], [pod("Running")]])
def test_nothing_is_wrong_while_a_job_begins_or_runs(pods: Any) -> None:
    """An old warning about a pod that runs by now is no trouble."""
    assert trouble_of(manifest(), pods, []) is None
    assert (
        trouble_of(manifest(), [pod("Running")], [warning("FailedCreate", QUOTA, WORK.name)])
        is None
    )


@pytest.mark.parametrize("code", [1, 2, 3, 4, 75])
def test_the_stages_own_code_is_kept(code: int) -> None:
    """The contract of the stages is the contract of run-job."""
    job = having(manifest(), "Failed", reason="PodFailurePolicy")
    assert code == ending_of(job, [ended(75, name="a"), ended(code, name="b")]).code


@pytest.mark.parametrize(
    ("dead", "code", "words"),
    [
        (ended(137, reason="OOMKilled"), ExitCode.SETTINGS, "memory limit of 1Gi"),
        (ended(137, reason="Error"), ExitCode.TRY_AGAIN, "SIGKILL"),
        (ended(143, reason="Error"), ExitCode.TRY_AGAIN, "SIGTERM"),
        (ended(139, reason="Error"), ExitCode.BUG, "exit code 139"),
        (
            ended(128, reason="StartError", message="no mmar-jobs"),
            ExitCode.SETTINGS,
            "no mmar-jobs",
        ),
        (ended(137, reason="ContainerStatusUnknown"), ExitCode.TRY_AGAIN, "without a word"),
    ],
)
def test_how_a_pod_died(dead: Any, code: ExitCode, words: str) -> None:
    """What would happen again is 2, what may pass is 75, what nobody foresaw is 1."""
    found, sentence = death_of(dead)
    assert code == found
    assert words in sentence


@pytest.mark.parametrize(
    "reason", ["PreemptionByScheduler", "EvictionByEvictionAPI", "TerminationByKubelet", "Another"]
)
def test_a_disrupted_pod_is_try_again(reason: str) -> None:
    """Even where the stage had time to end with a code of its own."""
    target = {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "m"}
    code, sentence = death_of(ended(2, conditions=[target]))
    assert (ExitCode.TRY_AGAIN, True) == (
        code,
        sentence.startswith("pod p was ") or "room" in sentence,
    )


def test_a_pod_that_its_node_evicted_is_try_again() -> None:
    """The node's own words are kept."""
    evicted = ended(137, reason="", message="")
    evicted["status"] |= {"reason": "Evicted", "message": "low on resource: memory"}
    code, sentence = death_of(evicted)
    assert (ExitCode.TRY_AGAIN, True) == (code, "low on resource: memory" in sentence)


def test_a_finished_job_tells_its_outcome() -> None:
    """The JSON object that the stage left in its termination message."""
    found = ending_of(having(manifest(), "Complete"), [ended(75), succeeded(learned=True, n=3)])
    assert (ExitCode.DONE, {"learned": True, "n": 3}) == (found.code, found.outcome)


def test_a_word_that_is_no_outcome_is_none() -> None:
    """A stage of other software, or one whose pod is gone."""
    job = having(manifest(), "Complete")
    assert ending_of(job, [ended(0, message="bye")]).outcome is None
    assert ending_of(job, []).outcome is None


def test_a_job_without_pods_or_beyond_its_time_is_try_again() -> None:
    """Finished work is kept, so the same command goes on."""
    late = having(manifest(), "Failed", reason="DeadlineExceeded")
    assert ExitCode.TRY_AGAIN == ending_of(late, [ended(3)]).code
    assert ExitCode.TRY_AGAIN == ending_of(having(manifest(), "Failed"), []).code
