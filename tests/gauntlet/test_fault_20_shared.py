"""Not one of the nineteen, and as real: two runs of one name, and a store that refuses."""

from pathlib import Path

import pytest

from mmar_jobs.errors import ExitCode
from mmar_jobs.layout import run_key
from mmar_jobs.store import open_store
from tests.gauntlet.conftest import HealthyRun
from tests.gauntlet.planted import RUN_ID, Run


def test_20_two_processes_do_not_write_one_run(run_after: HealthyRun) -> None:
    """The second one is told who is at work, and may try again when that has ended."""
    run = run_after("ingest")
    with open_store(str(run.store)).lease(run_key(RUN_ID)):
        stop = run.cli("generate")
    stop.says(ExitCode.TRY_AGAIN, "is in use by pid", "choose another --run-id")
    assert ExitCode.DONE == run.cli("generate").code


def test_20_another_run_of_the_same_name_is_refused(run_after: HealthyRun) -> None:
    """Other questions under a name that is taken: nothing is mixed and nothing overwritten."""
    run = run_after("ingest")
    stop = run.cli("ingest", "--questions", str(run.world.heldout), "--heldout", "")
    stop.says(ExitCode.SETTINGS, "runs/gauntlet/questions", "input train", "another --run-id")


def test_20_a_finished_artifact_is_never_finished_twice(run_after: HealthyRun) -> None:
    """Where no lease could keep them apart, the first manifest stays and the second run stops."""
    run = run_after("ingest")
    manifest = run.path("iter-1/candidates/manifest.json")
    asked: list[str] = []

    def race(request: object, draw: int, identity: object) -> str:
        if not asked:
            manifest.parent.mkdir(parents=True, exist_ok=True)
            manifest.write_text("{}")
        asked.append("once")
        return run.exam.healthy(request, draw, identity)  # type: ignore[arg-type]

    stop = run.stop("generate", opener=run.opener(race))
    stop.says(ExitCode.SETTINGS, "finished by another run meanwhile", "--run-id")
    assert "{}" == manifest.read_text()


@pytest.mark.parametrize("place", ["a-file", "a-file/below"])
def test_20_a_store_that_cannot_be_written_is_named(
    new_run: Run, tmp_path: Path, place: str
) -> None:
    """A file where a folder must be: the setting is wrong, whoever the user is."""
    (tmp_path / "a-file").write_text("occupied")
    new_run.store = tmp_path / place
    stop = new_run.cli("ingest")
    stop.says(ExitCode.SETTINGS, "a-file")
