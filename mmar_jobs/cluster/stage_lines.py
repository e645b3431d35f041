"""What a stage's pod says: passed on as it is, its progress told to Argo and in `cluster status`.

Not here: reading it from the cluster (pod_logs.py).
"""

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmar_jobs.logs import FINISHED
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
    told = _event_of(line)
    return f"{told['done']}/{told['total']}" if told.get("event") == PROGRESS else None


def summary_of(lines: Iterable[str]) -> str:
    """How far a stage is, and how fast it is or was, in a few words; "" where none tells; pure."""
    says = ""
    for told in map(_event_of, lines):
        if told.get("event") == PROGRESS:
            rate = f", {told['per_s']:,g}/s" if "per_s" in told else ""
            says = f"{told['label']}: {told['done']:,} of {told['total']:,}{rate}"
        elif told.get("event") == FINISHED:
            speed = told.get("tokens_per_s")
            says = "" if speed is None else f"{speed:,.0f} tokens/s"
    return says


def _event_of(line: str) -> Mapping[str, Any]:
    """What a line of the log tells; nothing where it is no such line."""
    if not line.startswith("{"):
        return {}
    try:
        told = json.loads(line)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
