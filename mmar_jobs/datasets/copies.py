"""Which clips of one set are copies of each other.

Copies share at least half of the shorter one: clips put together of the same few sounds share
stretches with nearly all others, and would else be one group. Not here: prints (fingerprint.py),
how two are compared (near.py), another set such as the benchmark (guard.py).
"""

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from mmar_jobs.datasets.fingerprint import FRAME_S, Print
from mmar_jobs.datasets.near import Index, Match
from mmar_jobs.progress import Tracker

MIN_SHARE: Final = 0.5
_BLOCK: Final = 2_000  # prints indexed at once, 150 MB where they are of 20 s
_STEP: Final = 256  # prints looked up at once: few enough for a bar that moves


class Copy(NamedTuple):
    """Two copies by name, in the order of their set; `share` of the shorter one is common."""

    first: str
    second: str
    share: float
    match: Match


def find_copies(
    prints: Mapping[str, Print], track: Tracker, *, block: int = _BLOCK
) -> Iterator[Copy]:
    """Every pair of copies among `prints`; `block` bounds the memory and changes nothing else."""
    names, made = list(prints), list(prints.values())
    num = len(names)
    with track("comparing clips", sum(num - start for start in range(0, num, block))) as advance:
        for start in range(0, num, block):
            index = Index(made[start : start + block])
            for at in range(start, num, _STEP):
                asked = made[at : at + _STEP]
                for mine, other, match in index.search(asked):
                    first, second = start + mine, at + other
                    shorter_s = FRAME_S * min(made[first].num_frames, made[second].num_frames)
                    share = min(1.0, match.stretch_s / shorter_s)
                    if first < second and share >= MIN_SHARE:
                        yield Copy(names[first], names[second], share, match)
                advance(len(asked))
