"""Tests of what a stage tells a workflow: decisions and counts, in a file that is there already."""

import json
from pathlib import Path

import pytest

from mmar_jobs.artifact import require_artifact
from mmar_jobs.cli import run_command
from mmar_jobs.errors import ExitCode
from mmar_jobs.layout import verdict_key
from mmar_jobs.outcome import outcome_of
from mmar_jobs.store import open_store
from mmar_jobs.tiny.build import TinyWorld
from tests.fakes import Fails, FakeOpener
from tests.loop_run import RUN_ID, Scripted, command_of
from tests.test_loop import go


def _filter(store: Path, iteration: int, *flags: str) -> tuple[str, ...]:
    run = ("--store", str(store), "--run-id", RUN_ID, "--iteration", str(iteration))
    return (*run, "--filter.top-k", "2", *flags)


@pytest.fixture(scope="module")
def store(world: TinyWorld, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose second iteration found nothing left to learn."""
    folder = tmp_path_factory.mktemp("outcome")
    command = command_of(world, model_folder, folder, iterations=3)
    go(command, FakeOpener(Scripted(world, masterly_adapters=True)))
    return folder


def test_a_filter_that_found_examples_says_so(store: Path, tmp_path: Path) -> None:
    """Written into the file in place: in a pod it is a mount."""
    file = tmp_path / "outcome"
    file.touch()
    inode = file.stat().st_ino
    assert 0 == run_command("filter", _filter(store, 1, "--outcome-file", str(file)))
    outcome = json.loads(file.read_text())
    assert outcome["learned"] is True
    assert outcome["num_examples"] > 0
    assert inode == file.stat().st_ino


def test_nothing_left_to_learn_is_an_outcome_where_one_is_asked_for(
    store: Path, tmp_path: Path, fails: Fails
) -> None:
    """The workflow ends its loop by it; a person at a terminal gets an error."""
    file = tmp_path / "outcome"
    assert 0 == run_command("filter", _filter(store, 2, "--outcome-file", str(file)))
    assert {"learned": False} == json.loads(file.read_text())
    fails(ExitCode.DATA, "filter", *_filter(store, 2))


def test_an_evaluation_tells_its_decision(store: Path) -> None:
    """In the words of the verdict, which the workflow compares."""
    verdict = require_artifact(open_store(str(store)), verdict_key(RUN_ID, 1), stage="evaluate")
    assert "PROMOTE" == outcome_of("evaluate", verdict)["decision"]


def test_an_outcome_file_that_cannot_be_written_is_one_line(
    store: Path, tmp_path: Path, fails: Fails
) -> None:
    """Exit 2, naming the file."""
    file = tmp_path / "no" / "outcome"
    line = fails(ExitCode.SETTINGS, "filter", *_filter(store, 1, "--outcome-file", str(file)))
    assert str(file) in line
