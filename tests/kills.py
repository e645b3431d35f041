"""Commands in processes of their own, to be killed at any moment.

Not here: the tests, and what must be left.
"""

import os
import random
import signal
import subprocess
import time
from pathlib import Path


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    """Start a run in a session of its own, so that a kill cannot reach the test."""
    return subprocess.Popen(
        arguments,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finish(arguments: list[str]) -> float:
    """Run to the end; returns the wall time in seconds."""
    began = time.monotonic()
    process = start(arguments)
    _, errors = process.communicate(timeout=900)
    assert 0 == process.returncode, errors.decode()[-2000:]
    return time.monotonic() - began


def kill_somewhere(
    process: subprocess.Popen[bytes],
    store: Path,
    chance: random.Random,
    *,
    at_least: int = 0,
    longest_s: float = 2.5,
) -> bool:
    """Kill -9 after `at_least` or one more durable files and a random moment of `longest_s`.

    False if it ended first.
    """
    target = num_files(store) + at_least + chance.randrange(2)
    while num_files(store) < target and process.poll() is None:
        time.sleep(0.01)
    try:
        process.wait(timeout=chance.uniform(0, longest_s))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def num_files(store: Path) -> int:
    """How many files the run has made durable so far."""
    return sum(1 for path in store.rglob("*") if not path.name.startswith("."))
