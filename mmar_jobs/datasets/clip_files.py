"""The audio files below a folder, found by the path that a row gives them.

Not here: reading them. Archives pack the same clips at other depths and rows name them with or
without folders, so a clip is found by its path, else by the end of its path, where that is unique.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mmar_jobs.datasets.archive import safe_parts

SUFFIXES: Final = frozenset({".wav", ".flac", ".ogg", ".mp3"})


class ClipFiles:
    """An index of the audio files below `folder`, hidden folders left out."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._by_name: dict[str, list[Path]] = {}
        for path in _audio_below(folder):
            relative = path.relative_to(folder)
            self._by_name.setdefault(path.name, []).append(relative)
            self._by_name.setdefault(path.stem, []).append(relative)

    def __bool__(self) -> bool:
        return bool(self._by_name)

    def find(self, named: str) -> Path | None:
        """The file that a row's `named` means, or None; never one outside the folder."""
        parts = safe_parts(named)
        if not parts:
            return None
        exact = Path(*parts)
        for key in (exact.name, exact.stem):
            found = self._by_name.get(key, [])
            if exact in found:
                return self._folder / exact
            for depth in range(len(parts), 0, -1):
                ends = [path for path in found if _ends_with(path, exact, depth)]
                if len(ends) == 1:
                    return self._folder / ends[0]
        return None


def _ends_with(path: Path, named: Path, depth: int) -> bool:
    """Whether the last `depth` parts are equal, the suffix aside."""
    own, others = path.with_suffix("").parts[-depth:], named.with_suffix("").parts[-depth:]
    return own == others


def _audio_below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in SUFFIXES and not is_hidden and path.is_file():
            yield path
