"""Tests of the commands that judge files: validate names every problem, score counts all ids."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from mmar_jobs.cli import run_command
from mmar_jobs.errors import ExitCode
from mmar_jobs.tiny.build import TinyWorld
from tests.fakes import Fails


def meta_rows(world: TinyWorld) -> list[dict[str, Any]]:
    """The benchmark's rows."""
    return [json.loads(line) for line in world.benchmark.read_text().splitlines()]


def write_zip(path: Path, rows: list[dict[str, Any]], name: str = "result.jsonl") -> Path:
    """A submission of these rows."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, "".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def predicted(row: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A right prediction of a benchmark row."""
    known = {
        "id": row["id"],
        "thinking_prediction": "I hear it.",
        "answer_prediction": row["answer"],
    }
    return known | changes


def test_validate_accepts_a_right_submission(
    world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 0 and one line."""
    path = write_zip(tmp_path / "s.zip", [predicted(row) for row in meta_rows(world)])
    assert 0 == run_command("validate", [str(path), "--meta", str(world.benchmark)])
    assert f"{path} is a valid submission\n" == capsys.readouterr().out


def test_validate_names_every_problem(
    world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 3; each problem on a line of its own, their number in the last."""
    rows = meta_rows(world)
    wrong = [
        predicted(rows[0]),
        predicted(rows[0]),
        predicted(rows[1], answer_prediction="no choice"),
        predicted(rows[2], thinking_prediction="x" * 10_000),
        predicted(rows[3], id="stranger"),
    ]
    path = write_zip(tmp_path / "s.zip", wrong)
    assert ExitCode.DATA == run_command("validate", [str(path), "--meta", str(world.benchmark)])
    told = capsys.readouterr()
    for problem in (
        f"duplicate id '{rows[0]['id']}'",
        "'no choice', which is not one of its choices",
        "thinking_prediction of 10000 characters",
        "unknown id 'stranger'",
        f"missing id '{rows[3]['id']}'",
        f"missing id '{rows[5]['id']}'",
    ):
        assert problem in told.out
    assert f"has {len(told.out.splitlines())} problems" in told.err


def test_validate_names_all_of_many_problems(
    world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not only the first few."""
    rows = [predicted(meta_rows(world)[0], id=f"stranger-{i}") for i in range(300)]
    path = write_zip(tmp_path / "s.zip", rows)
    assert ExitCode.DATA == run_command("validate", [str(path), "--meta", str(world.benchmark)])
    assert 300 == capsys.readouterr().out.count("unknown id 'stranger-")


@pytest.mark.parametrize("kind", ["not a zip", "other file", "missing"])
def test_validate_refuses_what_is_no_submission(
    world: TinyWorld, tmp_path: Path, kind: str, fails: Fails
) -> None:
    """A text file, a zip of another file, no file at all."""
    path = tmp_path / "s.zip"
    if kind == "not a zip":
        path.write_text("{}")
    elif kind == "other file":
        write_zip(path, [], name="results/result.jsonl")
    assert str(path) in fails(ExitCode.DATA, "validate", str(path), "--meta", str(world.benchmark))


def test_validate_needs_meta(fails: Fails) -> None:
    """A flag that is missing is a settings error, as everywhere."""
    assert "--meta" in fails(ExitCode.SETTINGS, "validate", "s.zip")


def test_broken_meta_names_its_line(world: TinyWorld, tmp_path: Path, fails: Fails) -> None:
    """A score over the rows that can be read would be of another benchmark."""
    path = write_zip(tmp_path / "s.zip", [])
    meta = tmp_path / "meta.jsonl"
    lines = world.benchmark.read_text().splitlines()
    meta.write_text("\n".join([lines[0], "", "{broken", *lines[1:]]))
    line = fails(ExitCode.DATA, "validate", str(path), "--meta", str(meta))
    assert f"{meta} line 3: is not JSON" in line
    meta.write_text("")
    assert "holds no question" in fails(ExitCode.DATA, "validate", str(path), "--meta", str(meta))


@pytest.mark.parametrize("is_zip", [True, False])
def test_score_prints_json(
    world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str], is_zip: bool
) -> None:
    """From a zip or JSONL: the promised keys, as fractions of all ids in META."""
    rows = meta_rows(world)
    answers = [predicted(rows[0]), predicted(rows[1]), predicted(rows[2], answer_prediction="no")]
    path = tmp_path / "predictions"
    if is_zip:
        write_zip(path, answers)
    else:
        plain = [{key: row[key] for key in ("id", "answer_prediction")} for row in answers]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in plain))
    assert 0 == run_command("score", [str(path), "--meta", str(world.benchmark), "--json"])
    scored = json.loads(capsys.readouterr().out)
    assert (6, 3) == (scored["num_items"], scored["num_answered"])
    for name in ("official_accuracy", "strict_accuracy"):
        assert pytest.approx(2 / 6) == scored[name]
        low, high = scored[f"{name}_ci95"]
        assert 0 < low < 2 / 6 < high < 1
    assert {row["category"] for row in rows} == scored["by_category"].keys()
    assert {row["sub-category"] for row in rows} == scored["by_sub_category"].keys()
    assert 6 == sum(group["num_items"] for group in scored["by_category"].values())


def test_score_prints_a_table(
    world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --json a person reads it."""
    path = write_zip(tmp_path / "s.zip", [predicted(row) for row in meta_rows(world)])
    assert 0 == run_command("score", [str(path), "--meta", str(world.benchmark)])
    lines = capsys.readouterr().out.splitlines()
    assert "official (95 %)" in lines[0]
    assert lines[1].startswith("all ")
    assert "1.000 (" in lines[1]
