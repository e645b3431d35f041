"""Several processes of one command end with one exit code that says what happened."""

import signal
import subprocess
import sys
import time

import pytest

from mmar_jobs.errors import ExitCode, TryAgain
from mmar_jobs.launch import free_port, outcome, wait_for


def start(code: str) -> "subprocess.Popen[bytes]":
    """A process that runs a line of Python."""
    return subprocess.Popen([sys.executable, "-S", "-c", code])


def end_of(*codes: str, grace_s: float = 5.0) -> int:
    """What a launch of these processes returns."""
    children = [start(code) for code in codes]
    try:
        return outcome(wait_for(children, grace_s=grace_s))
    finally:
        for child in children:
            child.kill()
            child.wait()


def test_all_done_is_done() -> None:
    """Every process must be done."""
    assert ExitCode.DONE == end_of("pass", "pass")


@pytest.mark.parametrize("code", [1, 2, 3])
def test_an_error_of_one_is_the_launchs(code: int) -> None:
    """The others only met its absence: what they say (75) is not the cause."""
    late = "import time; time.sleep(.5); raise SystemExit"
    assert code == end_of(f"{late}(75)", f"raise SystemExit({code})")
    assert code == end_of("raise SystemExit(75)", f"{late}({code})")


def test_all_stopped_is_try_again() -> None:
    """Preempted together."""
    assert ExitCode.TRY_AGAIN == end_of("raise SystemExit(75)", "raise SystemExit(75)")


@pytest.mark.parametrize("other", ["raise SystemExit(75)", "import time; time.sleep(60)"])
def test_a_killed_process_is_try_again(other: str) -> None:
    """Also where the other one hangs for ever: it is given up after the grace."""
    began = time.monotonic()
    with pytest.raises(TryAgain, match=r"was killed \(SIGKILL\): run the same command again"):
        end_of("import os; os.kill(os.getpid(), 9)", other, grace_s=0.5)
    assert time.monotonic() - began < 20


def test_signals_have_names() -> None:
    """A crash in native code is named as well."""
    with pytest.raises(TryAgain, match="SIGSEGV"):
        outcome([0, -signal.SIGSEGV])


def test_free_ports_are_free() -> None:
    """Two in a row can both be listened on."""
    assert 1024 <= free_port() < 65536
