"""Tests of serve-config: each server of a node loads the model of the run that it is told to."""

import json
from pathlib import Path

import pytest

from mmar_jobs import loop
from mmar_jobs.base_model import model_digest
from mmar_jobs.cli import run_command
from mmar_jobs.errors import ExitCode
from mmar_jobs.lineage import best_model, parent_of
from mmar_jobs.store import open_store
from mmar_jobs.tiny.build import TinyWorld
from tests.fakes import Fails, FakeOpener
from tests.loop_run import RUN_ID, Scripted, command_of, edges_for

PROMOTED = 1


@pytest.fixture(scope="module")
def store(world: TinyWorld, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one iteration whose adapter was promoted; read only."""
    folder = tmp_path_factory.mktemp("run") / "store"
    command = command_of(world, model_folder, folder)
    loop.run(command, edges_for(command, FakeOpener(Scripted(world))))
    return folder


def _configured(output: Path) -> list[dict[str, str]]:
    return [json.loads(path.read_text()) for path in sorted(output.glob("server-*.yaml"))]


def test_without_a_run_the_base_is_served(model_folder: Path, tmp_path: Path) -> None:
    """A plain installation gives an endpoint: as many files as servers, the base in each."""
    flags = ("--model", str(model_folder), "--cache", str(tmp_path / "cache"))
    assert 0 == run_command("serve-config", [*flags, "--num-servers=2", f"--output={tmp_path}"])
    first, second = _configured(tmp_path)
    assert str(model_folder) == first["model"]
    assert first == second
    assert not (tmp_path / "cache").exists()


def test_each_server_gets_its_own_model(store: Path, model_folder: Path, tmp_path: Path) -> None:
    """Parent on the first, the merged child on all others, each under its own hash."""
    output, cache = tmp_path / "serve", tmp_path / "cache"
    flags = [
        *("--store", str(store), "--run-id", RUN_ID, "--iteration", str(PROMOTED)),
        *("--model", str(model_folder), "--models", "parent,child", "--num-servers", "3"),
        *("--cache", str(cache), "--output", str(output)),
    ]
    assert 0 == run_command("serve-config", flags)
    parent, child, third = _configured(output)
    assert child == third
    opened = open_store(str(store))
    base_digest = parent_of(opened, RUN_ID, 1).identity(model_digest(model_folder)).hash
    best, _ = best_model(opened, RUN_ID)
    assert PROMOTED == best.iteration
    child_hash = best.identity(model_digest(model_folder)).hash
    assert (f"mmar-{base_digest[:16]}", str(model_folder)) == (
        parent["served-model-name"],
        parent["model"],
    )
    assert f"mmar-{child_hash[:16]}" == child["served-model-name"]
    assert cache / child_hash[:16] == Path(child["model"])
    assert (cache / child_hash[:16] / "config.json").is_file()


def test_what_is_merged_is_kept_and_the_rest_pruned(
    store: Path, model_folder: Path, tmp_path: Path
) -> None:
    """The second start merges nothing; a folder that no server loads is deleted where asked."""
    cache = tmp_path / "cache"
    flags = [
        *("--store", str(store), "--run-id", RUN_ID, "--models", "best"),
        *("--model", str(model_folder), "--cache", str(cache), "--output", str(tmp_path)),
    ]
    assert 0 == run_command("serve-config", flags)
    [merged] = cache.glob("?" * 16)
    before = {path: path.stat().st_mtime_ns for path in merged.iterdir()}
    other, foreign = cache / ("0" * 16), cache / "not-ours"
    other.mkdir()
    foreign.mkdir()
    assert 0 == run_command("serve-config", flags)
    assert other.exists()
    assert 0 == run_command("serve-config", [*flags, "--prune"])
    assert before == {path: path.stat().st_mtime_ns for path in merged.iterdir()}
    assert not other.exists()
    assert foreign.exists()


def test_a_run_needs_its_store(model_folder: Path, tmp_path: Path, fails: Fails) -> None:
    """Which adapter is meant is written there."""
    flags = ("--model", str(model_folder), "--cache", str(tmp_path), "--output", str(tmp_path))
    line = fails(ExitCode.SETTINGS, "serve-config", "--run-id", "r", *flags)
    assert "--store is needed with --run-id" in line


@pytest.mark.parametrize("models", ["", "newest", "parent,,child", "parent, child"])
def test_models_are_words_that_mean_something(
    models: str, model_folder: Path, tmp_path: Path, fails: Fails
) -> None:
    """Anything else is refused before a byte is read."""
    flags = ("--model", str(model_folder), "--cache", str(tmp_path), "--output", str(tmp_path))
    assert "--models" in fails(ExitCode.SETTINGS, "serve-config", f"--models={models}", *flags)
