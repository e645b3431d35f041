"""What this process has used so far. Not here: what it may use."""

import resource
from pathlib import Path


def cpu_s() -> float:
    """Seconds of CPU, user and system."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_bytes() -> int:
    """Most resident memory since exec; ru_maxrss is that of the parent where it was larger."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
