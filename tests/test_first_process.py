"""Test of the program as the first process of a container."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.mark.skipif(os.geteuid() != 0, reason="making a PID namespace needs root")
def test_it_can_be_asked_to_stop_before_it_has_begun(tmp_path: Path) -> None:
    """The kernel gives such a process no signal that it does not handle: exit 75 all the same."""
    config = tmp_path / "config.toml"
    os.mkfifo(config)
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-m", "mmar_jobs"]
    program = subprocess.Popen([*command, "ingest", "--config", str(config)])
    try:
        held = _open_when_read(config, program)
        children = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text()
        os.kill(int(children), signal.SIGTERM)
        assert 75 == program.wait(30)
        os.close(held)
    finally:
        program.kill()
        program.wait()


def _open_when_read(fifo: Path, program: subprocess.Popen[bytes]) -> int:
    """The writing end, once the program waits at the other: it reads its settings."""
    for _ in range(600):
        assert program.poll() is None, "it did not wait for its settings"
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            time.sleep(0.1)
    raise AssertionError("it never read its settings")
