"""What a judge has said, on disk the moment it is said, so that nothing is paid for twice.

Not here: what the ratings mean (rubric.py). One JSON line each: first who judges what and how, then
ratings. A line that a kill cut short is dropped; every line before it counts.
"""

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pydantic import ValidationError

from mmar_jobs.errors import DataError, SettingsError, TryAgain
from mmar_jobs.records import Record


class Identity(Record):
    """Everything that may not change between the ratings of one journal."""

    judge_host: str
    judge_model: str
    prompt_sha256: str
    predictions_sha256: str
    rubrics_sha256: str
    temperature: float | None
    seed: int | None


class Rating(Record):
    """One rating of one item, as read off the judge's `reply`, which holds its reasons.

    Tokens are the server's count, 0 where it gives none.
    """

    id: str
    rating: int
    scores: tuple[int, ...]
    reply: str
    reported_model: str
    fingerprint: str | None
    prompt_tokens: int
    completion_tokens: int
    num_attempts: int


_WHAT: Final = {
    "judge_host": "judge",
    "judge_model": "judge model",
    "prompt_sha256": "prompt",
    "predictions_sha256": "predictions",
    "rubrics_sha256": "rubrics or questions",
    "temperature": "temperature",
    "seed": "seed",
}


class Journal:
    """An open journal, locked; `ratings` by item and number."""

    def __init__(self, path: Path, identity: Identity) -> None:
        """Open or begin the journal; SettingsError where it was kept for something else."""
        self.path = path
        self.ratings: dict[tuple[str, int], Rating] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
        except OSError as error:
            raise SettingsError(
                f"cannot write {path}: {error.strerror}; name another --journal"
            ) from None
        try:
            self._lock()
            self._read(identity)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, rating: Rating) -> None:
        """Keep a rating; it is on disk when this returns."""
        self._write(rating)
        self.ratings[rating.id, rating.rating] = rating

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TryAgain(
                f"{self.path} is in use by another run: wait for it, or name another --journal"
            ) from None

    def _read(self, identity: Identity) -> None:
        self._file.seek(0)
        lines = self._file.read().split(b"\n")
        # What follows the last line end was cut short, or is nothing.
        whole = lines[:-1]
        if lines[-1]:
            self._file.truncate(sum(len(line) + 1 for line in whole))
        if not whole:
            self._write(identity)
            return
        try:
            before = Identity.model_validate_json(whole[0])
        except ValidationError:
            raise DataError(
                f"{self.path} is no journal of ratings: name another --journal"
            ) from None
        self._check(before, identity)
        for number, line in enumerate(whole[1:], start=2):
            try:
                rating = Rating.model_validate_json(line)
            except ValidationError:
                raise DataError(
                    f"{self.path} line {number} is damaged: remove this line, its rating is asked "
                    "for again"
                ) from None
            self.ratings[rating.id, rating.rating] = rating

    def _check(self, before: Identity, now: Identity) -> None:
        differs = [
            f"{what} ({getattr(before, field)} there, {getattr(now, field)} now)"
            for field, what in _WHAT.items()
            if getattr(before, field) != getattr(now, field)
        ]
        if differs:
            raise SettingsError(
                f"{self.path} was kept with another {' and another '.join(differs)}: ratings are "
                "not mixed; name another --journal"
            )

    def _write(self, record: Record) -> None:
        self._file.write(json.dumps(record.model_dump(mode="json")).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
