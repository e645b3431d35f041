"""What a stage's pod says: passed on as it is, and its progress told to Argo.

Not here: reading it from the cluster (pod_logs.py).
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from mmar_jobs.progress import PROGRESS


@dataclass(frozen=True)
class StageLines:
    """Writes lines to standard output; `progress_file` is Argo's, where it runs this."""

    progress_file: Path | None

    def write(self, line: str) -> None:
        """One line, at once."""
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
        progress = progress_of(line)
        if self.progress_file is not None and progress is not None:
            self.progress_file.write_text(f"{progress}\n", encoding="utf-8")


def progress_of(line: str) -> str | None:
    """`N/M` of a line of the log that tells progress; pure."""
    if not line.startswith("{"):
        return None
    try:
        told = json.loads(line)
    except ValueError:
        return None
    if told.get("event") != PROGRESS:
        return None
    return f"{told['done']}/{told['total']}"
