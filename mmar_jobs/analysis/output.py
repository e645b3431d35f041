"""Write a file that is there whole or not at all.

Not here: artifacts of a run, which have a store (artifact.py).
"""

import os
from contextlib import suppress
from pathlib import Path

from mmar_jobs.errors import SettingsError


def write_text(path: Path, text: str) -> None:
    """Write UTF-8, replacing what was there; SettingsError where it cannot be written."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A row may hold half a surrogate pair, which no file can.
        draft.write_text(text, encoding="utf-8", errors="replace")
        draft.replace(path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise SettingsError(f"cannot write {path}: {error.strerror}; name another file") from None
