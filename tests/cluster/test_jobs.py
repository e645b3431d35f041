"""Tests of a stage's Job: name, labels, arguments, and what an existing one means."""

from typing import Any

import pytest

from mmar_jobs.cluster.jobs import DIGEST, STAGES, Fate, StageWork, differences, fate_of, job_of
from mmar_jobs.cluster.manifests import find_template
from mmar_jobs.errors import SettingsError
from tests.cluster.things import WORK, manifest, template
from tests.cluster.things import with_condition as having


@pytest.mark.parametrize(
    ("stage", "name"),
    [("filter", "run-i2-filter"), ("ingest", "run-ingest"), ("submit", "run-submit")],
)
def test_the_same_work_has_the_same_name(stage: str, name: str) -> None:
    """Iterations have names of their own where a stage has iterations."""
    assert name == StageWork(stage, "run", 2).name


@pytest.mark.parametrize("stage", STAGES)
def test_the_longest_run_id_still_gives_a_name(stage: str) -> None:
    """Kubernetes takes 63 characters, for the pods' label too."""
    assert 63 >= len(StageWork(stage, "r" * 40, 1000).name)


def test_a_job_carries_the_run_on_itself_and_its_pods() -> None:
    """Cost, status and logs are found by these labels."""
    job = manifest("--filter.top-k=2")
    wanted = {"mmar-jobs/run-id": "run", "mmar-jobs/iteration": "2", "mmar-jobs/stage": "filter"}
    for place in (job["metadata"], job["spec"]["template"]["metadata"]):
        assert wanted.items() <= place["labels"].items()
    arguments = ["filter", "--run-id", "run", "--iteration", "2"]
    arguments += ["--outcome-file", "/dev/termination-log", "--filter.top-k=2"]
    assert arguments == job["spec"]["template"]["spec"]["containers"][0]["args"]


def test_other_flags_or_another_image_are_other_work() -> None:
    """The digest tells, and the words name the difference."""
    one, other = manifest(), manifest("--filter.top-k=2")
    assert one["metadata"]["annotations"] != other["metadata"]["annotations"]
    assert "args " in differences(one, other)
    image = job_of(template(), WORK, image="new", flags=())
    assert "image mmar-jobs/cpu, now new" == differences(one, image)


def _deleted(job: dict[str, Any]) -> dict[str, Any]:
    return job | {"metadata": job["metadata"] | {"deletionTimestamp": "now"}}


@pytest.mark.parametrize(
    ("found", "fate"),
    [
        (None, Fate.ABSENT),
        (manifest(), Fate.RUNNING),
        (having(manifest(), "Complete"), Fate.DONE),
        (having(manifest("--x"), "Failed"), Fate.FAILED),
        (having(manifest("--x"), "Complete"), Fate.OTHER),
        (manifest("--x"), Fate.OTHER),
        (template(), Fate.OTHER),
        (_deleted(manifest()), Fate.LEAVING),
    ],
)
def test_what_an_existing_job_means(found: Any, fate: Fate) -> None:
    """Only the very same work is adopted; only what failed is replaced unasked."""
    assert fate is fate_of(found, manifest()["metadata"]["annotations"][DIGEST])


def test_a_manifest_without_the_container_is_refused() -> None:
    """In one line that names it."""
    broken = template()
    broken["spec"]["template"]["spec"]["containers"][0]["name"] = "main"
    with pytest.raises(SettingsError, match="no container 'stage'"):
        job_of(broken, WORK, image=None, flags=())


def test_a_stages_manifest_is_found_by_its_label(tmp_path: Any) -> None:
    """In a folder of files of one or many documents."""
    (tmp_path / "all.yaml").write_text(
        "kind: Job\nmetadata: {labels: {mmar-jobs/stage: filter}}\n---\nkind: Job\n"
        "metadata: {labels: {mmar-jobs/stage: train}}\n---\nkind: ConfigMap\n"
    )
    assert {"mmar-jobs/stage": "train"} == find_template(tmp_path, "train")["metadata"]["labels"]
    with pytest.raises(SettingsError, match="has no Job labelled mmar-jobs/stage=infer"):
        find_template(tmp_path, "infer")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(SettingsError, match="is not YAML"):
        find_template(tmp_path, "train")
