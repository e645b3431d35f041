"""Run one command of mmar-jobs in a process of its own and say what it took.

Not here: which commands (pipeline.py, filter.py, cold_start.py).
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmar_jobs.errors import DataError


@dataclass(frozen=True, slots=True)
class Spent:
    """Wall time from start to exit in seconds, CPU time in seconds, peak of resident memory."""

    wall_s: float
    cpu_s: float
    peak_bytes: int


def run_measured(arguments: Sequence[str]) -> Spent:
    """Run `mmar-jobs ARGUMENTS`; DataError with its last words where it fails."""
    with tempfile.TemporaryDirectory(prefix="mmar-bench-") as folder:
        file = Path(folder) / "spent.json"
        command = [sys.executable, "-m", "mmar_jobs.bench.spent", str(file), *arguments]
        wall_s = timed(command)
        used = json.loads(file.read_text(encoding="ascii"))
    return Spent(wall_s, used["cpu_s"], used["peak_bytes"])


def flags_of(settings: Mapping[str, object]) -> list[str]:
    """Settings by name as flags of a command."""
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def timed(command: Sequence[str]) -> float:
    """Seconds that a command takes from start to exit; DataError where it fails."""
    start_s = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    wall_s = time.perf_counter() - start_s
    if done.returncode != 0:
        raise DataError(
            f"the measured command ended with exit code {done.returncode}: {last_words(done)}"
        )
    return wall_s


def last_words(done: subprocess.CompletedProcess[str]) -> str:
    """The last line that a process wrote to standard error."""
    return (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
