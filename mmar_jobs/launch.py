"""Starting one command in several processes of this machine, and ending with one exit code.

torchrun does the same for several machines, but turns every exit code into 1 and gives a checkpoint
30 s at SIGTERM. Not here: what the processes say to each other (qlora/distributed.py).
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Final

from mmar_jobs.errors import ExitCode, TryAgain

_POLL_S: Final = 0.1
# The others notice on the CPU at once that one is gone, but a GPU kernel may wait for it for ever.
GRACE_S: Final = 10.0


def launch(arguments: Sequence[str], num_processes: int) -> int:
    """Run `mmar-jobs <arguments>` in `num_processes`; returns their exit code.

    SIGTERM is passed on, and waited for as long as it takes. When one process ends in an error the
    others get 10 s. TryAgain when one was killed.
    """
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    children: list[subprocess.Popen[bytes]] = []
    with _passed_on(children) as asked:
        try:
            for rank in range(num_processes):
                ranks = {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(num_processes),
                }
                command = [sys.executable, "-m", "mmar_jobs", *arguments]
                children.append(subprocess.Popen(command, env=os.environ | address | ranks))  # noqa: S603
            if asked:  # before all were there
                _tell(children, asked[0])
            return outcome(wait_for(children))
        finally:
            for child in children:
                if child.poll() is None:
                    child.kill()
                child.wait()


def wait_for(children: Sequence[subprocess.Popen[bytes]], *, grace_s: float = GRACE_S) -> list[int]:
    """Exit codes in the order in which the processes ended, each killed one's as minus its signal.

    Those that have not ended `grace_s` seconds after the first error are left out.
    """
    codes: dict[int, int] = {}
    deadline = float("inf")
    while len(codes) < len(children) and time.monotonic() < deadline:
        for rank, child in enumerate(children):
            code = child.poll()
            if code is not None and rank not in codes:
                codes[rank] = code
                if code != ExitCode.DONE:
                    deadline = min(deadline, time.monotonic() + grace_s)
        time.sleep(_POLL_S)
    return list(codes.values())


def outcome(codes: Sequence[int]) -> int:
    """The exit code of all: an error of one's own before those that only met another's absence.

    Raises TryAgain when a process was killed.
    """
    own = [code for code in codes if code > 0 and code != ExitCode.TRY_AGAIN]
    if own:
        return own[0]
    killed = [-code for code in codes if code < 0]
    if killed:
        name = signal.Signals(killed[0]).name
        raise TryAgain(
            f"a process of this training was killed ({name}): run the same command again, it goes "
            "on from the last checkpoint"
        )
    return max(codes)


@contextmanager
def _passed_on(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Pass SIGTERM on to the children inside the block; gives the list of what was passed on."""
    asked: list[int] = []

    def tell(number: int, frame: FrameType | None) -> None:
        del frame
        asked.append(number)
        _tell(children, number)

    before = signal.signal(signal.SIGTERM, tell)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def _tell(children: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
