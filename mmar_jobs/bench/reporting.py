"""Print figures as they come and keep the file of them whole.

Not here: what a figure carries (result.py).
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from mmar_jobs.bench.result import Measurement, write_measurements
from mmar_jobs.errors import ExitCode, SettingsError


def check_writable(json_file: Path | None) -> None:
    """Fail before minutes of measuring, not after."""
    if json_file is not None and str(json_file) != "-":
        if json_file.is_dir():
            raise SettingsError(f"--json {json_file} is a folder: name a file")
        probe = json_file.with_name(f".{json_file.name}.part")
        probe.touch()
        probe.unlink()


def report(measurements: Iterable[Measurement], json_file: Path | None) -> int:
    """Print figures as they come; the file is complete after each of them."""
    done: list[Measurement] = []
    to_stdout = json_file is not None and str(json_file) == "-"
    for measurement in measurements:
        if not to_stdout and (not done or done[-1].case != measurement.case):
            sys.stdout.write(f"{measurement.render_heading()}\n")
        done.append(measurement)
        line = measurement.render_json() if to_stdout else measurement.render_text()
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
        if json_file is not None and not to_stdout:
            write_measurements(json_file, done)
    return ExitCode.DONE
