"""Fixtures of the gauntlet: a healthy run after any stage, ready to be spoilt."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mmar_jobs.tiny.build import TinyWorld
from tests.gauntlet.planted import Exam, Run, Snapshots, read_rows

HealthyRun = Callable[[str], Run]


@pytest.fixture(scope="session")
def exam(world: TinyWorld) -> Exam:
    """Right and wrong answers to every question of the world."""
    files = (world.train, world.heldout, world.benchmark)
    return Exam({row["id"]: row for path in files for row in read_rows(path)})


@pytest.fixture(scope="session")
def snapshots(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, world: TinyWorld, exam: Exam
) -> Snapshots:
    """The healthy run; its stages run when the first test asks for them."""
    folder = tmp_path_factory.mktemp("gauntlet")
    return Snapshots(folder / "after", Run(folder / "store", model_folder, world, exam))


@pytest.fixture
def new_run(
    tmp_path: Path,
    model_folder: Path,
    world: TinyWorld,
    exam: Exam,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """A run that has not begun."""
    return Run(tmp_path / "store", model_folder, world, exam, capsys)


@pytest.fixture
def run_after(snapshots: Snapshots, new_run: Run) -> HealthyRun:
    """Gives a copy of the healthy run as it stands after the stage that is named."""

    def copy(stage: str) -> Run:
        snapshots.copy_after(stage, new_run.store)
        return new_run

    return copy
