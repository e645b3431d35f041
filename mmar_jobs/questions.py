"""Reading what ingest wrote: the questions of a split, where their clips lie, and rejected rows.

Not here: checking and splitting them (stages/ingest.py).
"""

from collections.abc import Iterable
from typing import Any

from mmar_jobs.artifact import Artifact
from mmar_jobs.errors import GateError
from mmar_jobs.layout import split_shard
from mmar_jobs.records import Question, Record


class Reject(Record):
    """A row that was left out, and why."""

    source: str
    line_number: int
    id: str | None
    reason: str
    is_contaminated: bool = False


def audio_root(questions: Artifact, split: str, override: str) -> str:
    """Where the clips of a split lie: `override`, else where ingest saw them."""
    roots: dict[str, Any] = questions.manifest.placement["audio_roots"]
    return override or str(roots[split])


def read_split(questions: Artifact, split: str) -> list[Question]:
    """All questions of a split."""
    return list(_checked(questions.read_records(split_shard(split), Question)))


def _checked(questions: Iterable[Question]) -> Iterable[Question]:
    for question in questions:
        if not question.audio_sha256 or question.audio_s <= 0:
            raise GateError(f"question {question.id} was never decoded by ingest: ingest it again")
        yield question
