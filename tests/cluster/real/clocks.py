"""Processes that take the date to be another one."""

from pathlib import Path

import pytest

_FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


def wrong_clock(skew: str, **more: str) -> dict[str, str]:
    """Variables under which a process takes the date to be so much later, "-5m" or "+3d"."""
    if not _FAKETIME.exists():
        pytest.skip("needs Debian's faketime, as install brings it")
    return {"LD_PRELOAD": str(_FAKETIME), "FAKETIME": skew, **more}
