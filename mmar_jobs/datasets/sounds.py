"""What the clips of a build sound like: which cannot be used, and which are copies of each other.

Not here: decoding (clip_pool.py), what a copy is (copies.py).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mmar_jobs.datasets.clip_pool import Examined, Place, examine
from mmar_jobs.datasets.copies import find_copies
from mmar_jobs.progress import Tracker


@dataclass
class Sounds:
    """Hears each clip once, with `jobs` processes; `cache` keeps what was heard for later runs."""

    track: Tracker
    jobs: int
    max_clip_s: float
    cache: Path | None = None
    _heard: dict[Path, Examined] = field(default_factory=dict)

    def problems(self, clips: Iterable[Path]) -> Mapping[Path, str]:
        """The clips among `clips` that cannot be used, with the reason."""
        new = sorted(set(clips) - set(self._heard))
        if new:
            place = Place("/", max_clip_s=self.max_clip_s, cache=self.cache)
            names = [str(path.resolve()).removeprefix("/") for path in new]
            found = examine(names, place, self.track, jobs=self.jobs)
            for clip, name, result in zip(new, names, found, strict=True):
                # Where a folder lies is no part of what is wrong with its clips.
                problem = result.problem.replace(name, clip.name)
                self._heard[clip] = replace(result, problem=problem)
        return {clip: problem for clip in clips if (problem := self._heard[clip].problem)}

    def digest(self, clip: Path) -> str:
        """SHA-256 of a clip that was heard."""
        return self._heard[clip].audio_sha256

    def copies(self, clips: Sequence[Path]) -> dict[Path, list[str]]:
        """Names of the pairs of copies that each clip is in; clips without a copy are absent."""
        prints = {
            self.digest(clip): made
            for clip in sorted(set(clips))
            if (made := self._heard[clip].made) is not None
        }
        pairs: dict[str, list[str]] = {}
        for copy in find_copies(prints, self.track):
            for digest in (copy.first, copy.second):
                pairs.setdefault(digest, []).append(f"{copy.first}-{copy.second}")
        return {clip: pairs[self.digest(clip)] for clip in clips if self.digest(clip) in pairs}
