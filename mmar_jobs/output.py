"""Write the file that a user named: whole or not at all.

Not here: artifacts of a run, which have a store (artifact.py).
"""

from pathlib import Path
from typing import BinaryIO

from mmar_jobs.store.disk import explained, replace_file


def write_output(path: Path, content: bytes | str) -> None:
    """Replace what is at `path`; SettingsError where it cannot be written.

    Through links, and straight into what is no file: a terminal, a pipe, /dev/null.
    """
    # A row may hold half a surrogate pair, which no file can.
    data = content.encode(errors="replace") if isinstance(content, str) else content

    def fill(file: BinaryIO) -> None:
        file.write(data)

    with explained("write", str(path)):
        target = path.resolve()
        if target.exists() and not target.is_file():
            with target.open("wb") as file:
                fill(file)
        else:
            replace_file(target, fill)
