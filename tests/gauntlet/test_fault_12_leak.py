"""Fault 12: rows were split, not sounds, and items of the benchmark were trained on."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mmar_jobs.errors import ExitCode
from mmar_jobs.records import Question
from tests.gauntlet.conftest import HealthyRun
from tests.gauntlet.planted import Row, Run, read_rows, write_rows

YOUTUBE = "https://www.youtube.com/watch?v=abcdefghijk"


@pytest.fixture
def own_world(new_run: Run, tmp_path: Path) -> Run:
    """A run on a copy of the world, whose files may be changed."""
    folder = tmp_path / "world"
    shutil.copytree(new_run.world.folder, folder)
    names = {name: folder / f"{name}.jsonl" for name in ("train", "heldout", "benchmark")}
    new_run.world = replace(new_run.world, folder=folder, **names)
    return new_run


def copy_clip(folder: Path, row: Row) -> str:
    """The row's clip once more, under another name."""
    path = folder / row["audio_path"]
    shutil.copyfile(path, path.with_name("renamed.wav"))
    return "./audio/renamed.wav"


def change_rows(path: Path, change: Callable[[list[Row]], object]) -> None:
    """Change a question file in place."""
    rows = read_rows(path)
    change(rows)
    write_rows(path, rows)


def test_12_a_clip_in_training_and_heldout_is_refused(own_world: Run) -> None:
    """The earlier attempt's accuracy was partly memory: its test clips had been trained on."""
    run = own_world
    clip = copy_clip(run.world.folder, read_rows(run.world.heldout)[0])
    change_rows(run.world.train, lambda rows: rows[0].update(audio_path=clip))
    stop = run.cli("ingest")
    stop.says(ExitCode.DATA, "contaminated by --heldout", "same audio", "remove these rows")


def test_12_a_benchmark_clip_under_another_name_is_refused(own_world: Run) -> None:
    """Clips are known by their bytes: neither a new file name nor a new id hides one."""
    run = own_world
    clip = copy_clip(run.world.folder, read_rows(run.world.benchmark)[0])
    change_rows(run.world.train, lambda rows: rows[0].update(audio_path=clip, id="innocent"))
    stop = run.cli("ingest")
    stop.says(ExitCode.DATA, "contaminated by the benchmark", "innocent has the same audio")


def test_12_another_part_of_a_benchmark_video_is_refused(own_world: Run) -> None:
    """A model that trained on 0:30 of a video has an advantage on 2:10 of it."""
    run = own_world
    change_rows(run.world.train, lambda rows: rows[3].update(url=f"{YOUTUBE}&t=30"))
    change_rows(run.world.benchmark, lambda rows: rows[0].update(url=YOUTUBE))
    stop = run.cli("ingest")
    stop.says(ExitCode.DATA, "contaminated", "has the same source youtube:abcdefghijk")


def test_12_contaminated_rows_can_be_dropped_and_are_listed(own_world: Run) -> None:
    """Dropped where that was asked for: counted, and with the reason in the manifest."""
    run = own_world
    change_rows(run.world.train, lambda rows: rows[3].update(url=YOUTUBE))
    change_rows(run.world.benchmark, lambda rows: rows[0].update(url=YOUTUBE))
    assert ExitCode.DONE == run.cli("ingest", "--data.contamination", "drop").code
    manifest = run.artifact("questions").manifest
    assert manifest.counts["num_rejects"] > 0
    assert "youtube:abcdefghijk" in str(manifest.metrics["rejects"])


def test_12_filter_looks_a_second_time(run_after: HealthyRun) -> None:
    """Whatever reached the round: no question that shares a source with the benchmark teaches."""
    run = run_after("generate")

    def leak(rows: list[Row]) -> list[Row]:
        return [
            row | {"source_ids": ["youtube:abcdefghijk"]} if "text" in row else row for row in rows
        ]

    run.replant("questions", leak)
    run.cli("filter").says(ExitCode.DATA, "youtube:abcdefghijk", "benchmark", "would be cheating")


def test_12_the_split_is_by_sound(new_run: Run) -> None:
    """Two questions share each clip of the world: held out are both of them, or neither."""
    split = ("--heldout", "", "--data.heldout-fraction", "0.5")
    assert ExitCode.DONE == new_run.cli("ingest", *split).code
    questions = new_run.artifact("questions")
    sides = [
        {question.audio_sha256 for question in questions.read_records(f"{name}.jsonl.gz", Question)}
        for name in ("train", "heldout")
    ]
    assert all(sides)
    assert set() == sides[0] & sides[1]
