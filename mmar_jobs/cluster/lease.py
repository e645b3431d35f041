"""Who holds a server, and until when: annotations of its StatefulSet; pure.

Times are the API server's, so clocks of pods may be wrong. Not here: writing them (scale.py),
acting on them (reap.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from mmar_jobs.cluster.jobs import RUN_LABEL

LEASE: Final = "mmar-jobs/lease-until"
HOLDER: Final = RUN_LABEL


@dataclass(frozen=True)
class Lease:
    """A server's lease; a time that cannot be read is over."""

    holder: str | None
    until: datetime | None

    @classmethod
    def of(cls, server: Mapping[str, Any]) -> "Lease | None":
        """The lease on a StatefulSet; None where there is none."""
        notes = server["metadata"].get("annotations") or {}
        if LEASE not in notes:
            return None
        return cls(notes.get(HOLDER), _parse(notes[LEASE]))

    def is_over(self, now: datetime) -> bool:
        """Whether its time has come."""
        return self.until is None or self.until <= now


def _parse(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def write(until: datetime) -> str:
    """RFC 3339 in UTC."""
    return until.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
