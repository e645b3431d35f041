"""Where a prompt's text comes from when it is not one of the known variants: a file.

Not here: the known variants, and what a text may hold (prompt.py).
"""

from pathlib import Path

from mmar_jobs.errors import SettingsError
from mmar_jobs.prompt import SYSTEM_BY_VERSION, system_text


def read_version(version: str) -> str:
    """What `--prompt.version` stands for: a known name, or the text that `@FILE` holds.

    A text takes the place of the name, so recipes and fingerprints hold it and no stage needs the
    file again. Raises SettingsError in one line.
    """
    if version.startswith("@"):
        return read_text(Path(version[1:]))
    if version not in SYSTEM_BY_VERSION:
        system_text(version)
    return version


def read_text(path: Path) -> str:
    """The prompt text in a file, stripped; SettingsError where it is none."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SettingsError(f"prompt file {path} cannot be read: {reason}") from None
    if len(text.split()) < 2:
        raise SettingsError(f"prompt file {path} holds no text: write the instructions into it")
    return system_text(text)
