"""Fault 16: the validator looked at the first rows of a submission and never at its ids.

Also: what it is compared with must be the whole benchmark, so no row of that may be left out.
"""

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mmar_jobs.errors import ExitCode
from tests.gauntlet.conftest import HealthyRun
from tests.gauntlet.planted import Row, Run, read_rows

SUBMISSION = "submission/iter-1/submission.zip"
Change = Callable[[list[Row]], list[Row]]
FAULTY: dict[str, Change] = {
    "missing id 'tiny-benchmark": lambda rows: rows[1:],
    "duplicate id 'tiny-benchmark": lambda rows: [*rows, rows[0]],
    "unknown id 'tiny-nobody'": lambda rows: [*rows, rows[0] | {"id": "tiny-nobody"}],
    "answer_prediction 'B', which is not one of its choices": lambda rows: [
        rows[0] | {"answer_prediction": "B"},
        *rows[1:],
    ],
    "has no answer_prediction": lambda rows: [
        {key: value for key, value in rows[0].items() if key != "answer_prediction"},
        *rows[1:],
    ],
    "thinking_prediction of 10000 characters": lambda rows: [
        rows[0] | {"thinking_prediction": "a" * 10_000},
        *rows[1:],
    ],
}


def spoil(run: Run, change: Change, name: str = "result.jsonl") -> Path:
    """The healthy submission with other rows, or under another name within the zip."""
    path = run.path(SUBMISSION)
    with zipfile.ZipFile(path) as archive:
        rows = [json.loads(line) for line in archive.read("result.jsonl").splitlines()]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, "".join(f"{json.dumps(row)}\n" for row in change(rows)))
    path.write_bytes(buffer.getvalue())
    return path


@pytest.mark.parametrize("problem", FAULTY)
def test_16_every_problem_of_a_submission_is_named(run_after: HealthyRun, problem: str) -> None:
    """The earlier attempt's zip could lack rows, and the benchmark would have scored the others."""
    run = run_after("submit")
    path = spoil(run, FAULTY[problem])
    stop = run.command("validate", str(path), "--meta", str(run.world.benchmark))
    stop.says(ExitCode.DATA, "submission.zip has 1 problem")
    assert problem in stop.out


def test_16_a_file_of_another_name_is_named(run_after: HealthyRun) -> None:
    """The scorer opens result.jsonl at top level and nothing else."""
    run = run_after("submit")
    path = spoil(run, lambda rows: rows, name="out/result.jsonl")
    stop = run.command("validate", str(path), "--meta", str(run.world.benchmark))
    stop.says(ExitCode.DATA, "1 problem")
    assert "must hold result.jsonl at top level" in stop.out


def test_16_the_healthy_submission_is_valid(run_after: HealthyRun) -> None:
    """All ids once, every answer the text of a choice."""
    run = run_after("submit")
    path = run.path(SUBMISSION)
    stop = run.command("validate", str(path), "--meta", str(run.world.benchmark))
    assert (ExitCode.DONE, True) == (stop.code, "is a valid submission" in stop.out)


@pytest.mark.parametrize("problem", ["missing id", "duplicate id", "unknown id", "not one of its"])
def test_16_submit_packs_nothing_that_is_not_valid(run_after: HealthyRun, problem: str) -> None:
    """The same rules hold before a file exists: faulty predictions make no zip."""
    run = run_after("infer")
    change = next(change for words, change in FAULTY.items() if problem in words)

    def change_predictions(rows: list[Row]) -> list[Row]:
        return change(rows) if "votes" in rows[0] else rows

    run.replant("predictions/iter-1", change_predictions)
    run.cli("submit").says(ExitCode.DATA, "1 problem", problem)
    assert not run.path(SUBMISSION).exists()


def break_line(rows: list[str], _: Path) -> list[str]:
    """A row that was cut while it was copied."""
    return [rows[0], rows[1][:40], *rows[2:]]


def drop_choice(rows: list[str], _: Path) -> list[str]:
    """A row whose choices were lost."""
    return [rows[0], json.dumps(json.loads(rows[1]) | {"choices": ["one"]}), *rows[2:]]


def repeat(rows: list[str], _: Path) -> list[str]:
    """A row that took another's id."""
    return [rows[0], json.dumps(json.loads(rows[1]) | {"id": json.loads(rows[0])["id"]}), *rows[2:]]


def lose_clip(rows: list[str], folder: Path) -> list[str]:
    """A clip that was never fetched."""
    (folder / json.loads(rows[1])["audio_path"]).unlink()
    return rows


def cut_clip(rows: list[str], folder: Path) -> list[str]:
    """A clip whose download stopped."""
    path = folder / json.loads(rows[1])["audio_path"]
    path.write_bytes(path.read_bytes()[:5000])
    return rows


def point_to_the_web(rows: list[str], _: Path) -> list[str]:
    """A clip that was never fetched, by its address."""
    address = {"audio_path": "https://example.org/clip.wav"}
    return [rows[0], json.dumps(json.loads(rows[1]) | address), *rows[2:]]


@pytest.mark.parametrize("strict", [[], ["--strict"]])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (break_line, "line 2: is not JSON"),
        (drop_choice, "needs 2 to 26 choices"),
        (repeat, "its id is already that of line 1"),
        (lose_clip, "does not exist"),
        (cut_clip, "is truncated"),
        (point_to_the_web, "https:// cannot be read"),
    ],
)
def test_16_a_broken_benchmark_never_makes_a_smaller_submission(
    new_run: Run,
    tmp_path: Path,
    damage: Callable[[list[str], Path], list[str]],
    reason: str,
    strict: list[str],
) -> None:
    """A row that cannot be asked would be missing from the zip and from what it is checked by."""
    world = tmp_path / "world"
    shutil.copytree(new_run.world.folder, world)
    benchmark = world / "benchmark.jsonl"
    lines = damage(benchmark.read_text().splitlines(), world)
    benchmark.write_text("".join(f"{line}\n" for line in lines))
    stop = new_run.cli("ingest", "--benchmark", str(benchmark), *strict)
    stop.says(ExitCode.DATA, "in the benchmark: line ", reason, "must answer every row")
    assert not new_run.path("questions/manifest.json").exists()
    new_run.cli("infer").says(ExitCode.DATA, "run the ingest stage first")
    new_run.cli("submit").says(ExitCode.DATA, "run the ingest stage first")


def test_16_the_submission_has_every_row_of_the_file(run_after: HealthyRun) -> None:
    """Counted against the benchmark as it was given, not against what ingest kept of it."""
    run = run_after("submit")
    with zipfile.ZipFile(run.path(SUBMISSION)) as archive:
        packed = [json.loads(line)["id"] for line in archive.read("result.jsonl").splitlines()]
    assert [row["id"] for row in read_rows(run.world.benchmark)] == packed
