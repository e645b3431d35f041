"""Tests of the stages' Jobs: one shape, the contract of exit codes, room to end."""

import copy

import kubernetes_validate
import pytest

from mmar_jobs.engine.serving import GIB
from mmar_jobs.errors import ExitCode
from tests.deploy.manifests import JOBS, Object, jobs, offline, read_one

KUBERNETES = "1.34"
STAGES = ("ingest", "generate", "filter", "train", "evaluate", "infer", "submit", "report")
ASKING = {"generate", "evaluate", "infer"}


def test_every_stage_has_a_job() -> None:
    """Each lies in the file of its name, and the kustomization has them all."""
    assert set(STAGES) == set(jobs())
    kustomization = read_one(JOBS / "kustomization.yaml")
    assert {f"{stage}.yaml" for stage in STAGES} == set(kustomization["resources"])
    for stage in STAGES:
        assert stage == read_one(JOBS / f"{stage}.yaml")["metadata"]["labels"]["mmar-jobs/stage"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_job_is_valid(stage: str) -> None:
    """The API server's own schema, with nothing unknown in it."""
    kubernetes_validate.validate(jobs()[stage], KUBERNETES, strict=True)


@pytest.mark.parametrize("stage", STAGES)
def test_final_exit_codes_fail_the_job_at_once(stage: str) -> None:
    """All codes but done and try-again; being drained is not counted."""
    final, lost = jobs()[stage]["spec"]["podFailurePolicy"]["rules"]
    expected = set(ExitCode) - {ExitCode.DONE, ExitCode.TRY_AGAIN}
    assert ("FailJob", expected) == (final["action"], set(final["onExitCodes"]["values"]))
    assert ("Ignore", "DisruptionTarget") == (lost["action"], lost["onPodConditions"][0]["type"])


def _common(job: Object) -> Object:
    """A Job less what may differ between stages."""
    rest = copy.deepcopy(job)
    spec = rest["spec"]
    del spec["activeDeadlineSeconds"]
    pod = spec["template"]["spec"]
    for key in ("terminationGracePeriodSeconds", "priorityClassName", "volumes"):
        del pod[key]
    pod.pop("tolerations", None)
    [container] = pod["containers"]
    for key in ("image", "args", "resources", "volumeMounts"):
        del container[key]
    container.pop("env", None)
    del container["securityContext"]["readOnlyRootFilesystem"]
    del rest["metadata"]["name"]
    del rest["metadata"]["labels"]["mmar-jobs/stage"]
    spec["template"]["metadata"]["labels"].pop("mmar-jobs/stage", None)
    return rest


@pytest.mark.parametrize("stage", STAGES)
def test_jobs_differ_only_where_stages_do(stage: str) -> None:
    """Room, time, image and volumes; what is said of one retry or security is said of all."""
    assert _common(jobs()["ingest"]) == _common(jobs()[stage])


@pytest.mark.parametrize("stage", STAGES)
def test_a_job_mounts_what_its_stage_needs(stage: str) -> None:
    """Models for those that read one, keys for those that ask servers, the GPU for training."""
    pod = jobs()[stage]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    assert (stage in ASKING | {"train"}) == ("model" in mounts)
    assert (stage in ASKING) == ("env" in container)
    assert (stage == "train") == ("nvidia.com/gpu" in container["resources"]["limits"])
    assert ("mmar-jobs/train" if "model" in mounts else "mmar-jobs/cpu") == container["image"]
    if "model" in mounts:
        assert mounts["model"]["readOnly"]


@pytest.mark.parametrize("stage", offline())
def test_a_stage_with_vllm_in_it_is_the_same_job(stage: str) -> None:
    """But for the image and its user, GPUs, and room for a merged model."""
    job = offline()[stage]
    kubernetes_validate.validate(job, KUBERNETES, strict=True)
    ours, theirs = _common(job), _common(jobs()[stage])
    for common in (ours, theirs):
        for key in ("runAsUser", "runAsGroup", "fsGroup"):
            del common["spec"]["template"]["spec"]["securityContext"][key]
    assert theirs == ours
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert "nvidia.com/gpu" in container["resources"]["limits"]
    told = {each["name"]: each["value"] for each in container["env"]}
    assert "vllm" == told["MMAR_ENGINE__BACKEND"]
    assert told["MMAR_ENGINE__MERGED_DIR"] in [m["mountPath"] for m in container["volumeMounts"]]


@pytest.mark.parametrize("job", [jobs()["train"], *offline().values()])
def test_shared_memory_counts_towards_the_limit(job: Object) -> None:
    """A tmpfs without room in the limit ends in an OOM kill."""
    pod = job["spec"]["template"]["spec"]
    [shm] = [volume for volume in pod["volumes"] if volume["name"] == "shm"]
    [container] = pod["containers"]
    resources = container["resources"]
    spare = _bytes(resources["limits"]["memory"]) - _bytes(resources["requests"]["memory"])
    assert _bytes(shm["emptyDir"]["sizeLimit"]) <= spare


def _bytes(quantity: str) -> int:
    assert quantity.endswith("Gi")
    return int(quantity.removesuffix("Gi")) * GIB
