"""What the tests of the rubric score share: a steady judge, and a quick command that asks it."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmar_jobs.cli import run_command
from tests.judge.server import Answer, JudgeServer, completion, marks

NUM_ITEMS = 6
SECRET = "sk-very-secret"


def arguments(files: tuple[Path, Path], server: JudgeServer, *more: str) -> list[str]:
    """A quick rubric score of these files by this judge."""
    predictions, meta = files
    return [
        str(predictions), "--meta", str(meta), "--rubrics", "--judge", server.url,
        "--judge-model", "judge-1", "--retry-pause", "0.01", "--json", *more,
    ]  # fmt: skip


def run_json(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int = 0
) -> dict[str, Any]:
    """Run the command and read what it prints."""
    capsys.readouterr()
    assert code == run_command("score", arguments)
    row: dict[str, Any] = json.loads(capsys.readouterr().out)
    return row


def item_of(request: dict[str, Any]) -> str:
    """Which question a call is about."""
    return "q" + request["messages"][1]["content"].split("What is number ")[1][0]


def steady(number: int, request: dict[str, Any]) -> Answer:
    """Awards three of five."""
    return completion(marks(1, 1, 1, 0, 0))
