"""A file that remembers what was measured of clips, so that a second look need not decode them.

Not here: measuring (clip_facts.py). An entry belongs to the bytes of one file, by their sha256, and
to one version of the measurements; another version's entries are as if absent.
"""

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from mmar_jobs.datasets.clip_facts import ClipFacts
from mmar_jobs.datasets.fingerprint import VERSION, Print
from mmar_jobs.errors import SettingsError

NAME: Final = ".mmar-clips.sqlite"
_FACTS_VERSION: Final = 2
_TAG: Final = f"{_FACTS_VERSION}/{VERSION}"
_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS clips "
    "(sha256 TEXT, tag TEXT, facts TEXT, print BLOB, PRIMARY KEY (sha256, tag)) WITHOUT ROWID"
)


class ClipCache:
    """Measurements by audio sha256 in one SQLite file; many may read, one at a time writes.

    A damaged entry is absent. Raises SettingsError where the file is none of ours or cannot be
    written.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path = path
        mode = "ro" if read_only else "rwc"
        try:
            uri = f"{path.absolute().as_uri()}?mode={mode}"
            self._base = sqlite3.connect(uri, uri=True, timeout=60, check_same_thread=False)
            if not read_only:
                self._base.execute(_TABLE)
                self._base.commit()
        except sqlite3.Error as error:
            raise self._refused(error) from None

    def close(self) -> None:
        """Close the file."""
        self._base.close()

    def get(self, audio_sha256: str) -> tuple[ClipFacts, Print] | None:
        """What is known of a clip, or None."""
        query = "SELECT facts, print FROM clips WHERE sha256 = ? AND tag = ?"
        try:
            row = self._base.execute(query, (audio_sha256, _TAG)).fetchone()
            if row is None:
                return None
            return ClipFacts.model_validate_json(row[0]), Print.unpack(row[1])
        except (ValidationError, ValueError, TypeError):
            return None
        except sqlite3.Error as error:
            raise self._refused(error) from None

    def put(self, known: Iterable[tuple[ClipFacts, Print]]) -> None:
        """Remember measurements, all or none."""
        rows = [
            (facts.audio_sha256, _TAG, facts.model_dump_json(), made.pack())
            for facts, made in known
        ]
        try:
            with self._base:
                self._base.executemany("INSERT OR REPLACE INTO clips VALUES (?, ?, ?, ?)", rows)
        except sqlite3.Error as error:
            raise self._refused(error) from None

    def _refused(self, error: sqlite3.Error) -> SettingsError:
        return SettingsError(
            f"the cache {self._path} cannot be used ({error}): delete it, or choose another --cache"
        )
