"""Fault 16: the validator looked at the first rows of a submission and never at its ids."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mmar_jobs.errors import ExitCode
from tests.gauntlet.conftest import HealthyRun
from tests.gauntlet.planted import Row, Run

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
    path = run.path("submission/submission.zip")
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
    path = run.path("submission/submission.zip")
    stop = run.command("validate", str(path), "--meta", str(run.world.benchmark))
    assert (ExitCode.DONE, True) == (stop.code, "is a valid submission" in stop.out)


@pytest.mark.parametrize("problem", ["missing id", "duplicate id", "unknown id", "not one of its"])
def test_16_submit_packs_nothing_that_is_not_valid(run_after: HealthyRun, problem: str) -> None:
    """The same rules hold before a file exists: faulty predictions make no zip."""
    run = run_after("infer")
    change = next(change for words, change in FAULTY.items() if problem in words)

    def change_predictions(rows: list[Row]) -> list[Row]:
        return change(rows) if "votes" in rows[0] else rows

    run.replant("predictions", change_predictions)
    run.cli("submit").says(ExitCode.DATA, "1 problem", problem)
    assert not run.path("submission/submission.zip").exists()
