"""What this process has used so far.

Not here: what it may use. Run as `python -m mmar_jobs.bench.spent FILE COMMAND ...` it runs one
command of mmar-jobs and writes what that took.
"""

import json
import resource
import sys
from pathlib import Path


def cpu_s() -> float:
    """Seconds of CPU, user and system."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_bytes() -> int:
    """Most resident memory since exec; ru_maxrss is that of the parent where it was larger."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main() -> int:
    """Run the command that is named second; the exit code is its own."""
    from mmar_jobs.cli import run_command  # noqa: PLC0415 - part of what is measured

    code = run_command(sys.argv[2], sys.argv[3:])
    used = {"cpu_s": cpu_s(), "peak_bytes": peak_bytes()}
    Path(sys.argv[1]).write_text(json.dumps(used), encoding="ascii")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
