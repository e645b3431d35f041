"""What the clips of a build sound like: which cannot be used, and which are copies of each other.

Not here: decoding (clip_pool.py), prints (fingerprint.py), their comparison (near.py). Copies are
clips that share at least half of the shorter one: clips put together of the same few sounds share
stretches with nearly all others, and would else be one group.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from mmar_jobs.datasets.clip_pool import Examined, Place, examine
from mmar_jobs.datasets.near import Index
from mmar_jobs.progress import Tracker

_MIN_SHARE: Final = 0.5
_STEP: Final = 256  # prints looked up at once: often enough for a bar that moves


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
        by_digest = {self.digest(clip): clip for clip in sorted(set(clips))}
        chosen = sorted(by_digest.values())
        made = [(clip, found) for clip in chosen if (found := self._heard[clip]).made is not None]
        prints = [found.made for _, found in made if found.made is not None]
        pairs: dict[Path, list[str]] = {}
        with self.track("comparing clips", len(prints)) as advance:
            index = Index(prints)
            for start in range(0, len(prints), _STEP):
                asked = prints[start : start + _STEP]
                for mine, other, match in index.search(asked):
                    one, two = made[mine], made[start + other]
                    if mine < start + other and match.stretch_s >= _MIN_SHARE * _shorter_s(
                        one, two
                    ):
                        name = f"{self.digest(one[0])}-{self.digest(two[0])}"
                        pairs.setdefault(one[0], []).append(name)
                        pairs.setdefault(two[0], []).append(name)
                advance(len(asked))
        return {
            clip: pairs[by_digest[self.digest(clip)]]
            for clip in clips
            if by_digest[self.digest(clip)] in pairs
        }


def _shorter_s(*clips: tuple[Path, Examined]) -> float:
    return min(found.facts.duration_s for _, found in clips if found.facts is not None)
