"""Tests of the journal of ratings: nothing is paid for twice, and nothing is mixed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mmar_jobs.errors import ExitCode
from tests.fakes import Fails
from tests.judge.cases import arguments, run_json, steady
from tests.judge.server import Answer, JudgeServer, serve


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--judge-model", "judge-2"], "another judge model (judge-1 there, judge-2 now)"),
        (["--temperature", "0.5"], "another temperature"),
        (["--judge-seed", "-1"], "another seed"),
        (["--rubric-file", "OTHER"], "another rubrics or questions"),
        (["predictions"], "another predictions"),
    ],
)
def test_a_journal_is_not_mixed(
    files: tuple[Path, Path], fails: Fails, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    change: list[str], said: str,
) -> None:  # fmt: skip
    """Another judge, rubric or prediction file needs another journal."""
    with serve(steady) as server:
        run_json(capsys, arguments(files, server))
        before = len(server.requests)
        if change == ["predictions"]:
            files[0].write_text(files[0].read_text().replace("thinking of 1", "thought of 1"))
            change = []
        if "OTHER" in change:
            other = tmp_path / "other.jsonl"
            other.write_text(files[1].read_text().replace("hears 3", "notices 3"))
            change = ["--rubric-file", str(other)]
        line = fails(ExitCode.SETTINGS, "score", *arguments(files, server), *change)
        assert before == len(server.requests)
    assert said in line


def test_a_journal_that_was_cut_short_goes_on(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Half a line at its end is dropped; all others count."""
    journal = files[0].with_name("predictions.jsonl.ratings.jsonl")
    with serve(steady) as server:
        whole = run_json(capsys, arguments(files, server))
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join(lines[:11]) + lines[11][:25])
        before = len(server.requests)
        again = run_json(capsys, arguments(files, server))
    assert 10 == len(server.requests) - before
    assert whole["score"] == again["score"]
    assert 21 == len(journal.read_bytes().splitlines())


@pytest.mark.parametrize("content", [b"hello\n", b"{}\n", b'{"id": 1}\n'])
def test_a_file_that_is_no_journal_is_left_alone(
    files: tuple[Path, Path], fails: Fails, tmp_path: Path, content: bytes
) -> None:
    """A wrong --journal must not eat a file."""
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with serve(steady) as server:
        line = fails(ExitCode.DATA, "score", *arguments(files, server, "--journal", str(path)))
    assert "is no journal" in line
    assert content == path.read_bytes()


def run_until(calls: int, server: JudgeServer, command: list[str]) -> None:
    """Start the command, kill it without warning after so many calls."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    running = subprocess.Popen(
        [sys.executable, "-m", "mmar_jobs", "score", *command],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(server.requests) < calls and time.monotonic() < deadline:
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait()


def test_a_kill_loses_only_what_was_in_flight(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed in the middle and run again: at most the calls in flight are repeated."""

    def slow(number: int, request: dict[str, Any]) -> Answer:
        return Answer(**{**vars(steady(number, request)), "stall_s": 0.05})

    with serve(slow) as server:
        run_until(9, server, arguments(files, server, "--concurrency", "2"))
        time.sleep(0.2)
        scored = run_json(capsys, arguments(files, server))
    assert 20 < len(server.requests) <= 22
    assert (0, 20) == (scored["num_not_evaluated"], scored["num_ratings"])


def test_two_runs_do_not_share_a_journal(
    files: tuple[Path, Path], fails: Fails, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second is told to wait."""
    import fcntl

    journal = files[0].with_name("predictions.jsonl.ratings.jsonl")
    with serve(steady) as server:
        run_json(capsys, arguments(files, server))
        with journal.open("ab") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            line = fails(ExitCode.TRY_AGAIN, "score", *arguments(files, server))
    assert "is in use by another run" in line
