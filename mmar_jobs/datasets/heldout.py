"""Separating training from held-out questions by their sound, evenly over categories; pure.

Not here: which questions share a sound, which comes as keys. mmar_jobs/split.py draws each group by
a coin; here the share of every category is met as nearly as whole groups allow.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence


def split(
    keys: Mapping[str, Sequence[str]],
    strata: Mapping[str, str],
    *,
    share: float,
    seed: int,
) -> set[str]:
    """The ids that are held out.

    `keys` are, by id, everything that ties a question to its sound: those that share a key, be it
    over others, are on one side. `strata` is each id's category. Groups come in the order of a
    hash; one is held out if that brings the categories nearer to `share` of their questions.
    """
    groups = group(keys)
    counts = Counter(strata.values())
    target = {stratum: share * count for stratum, count in counts.items()}
    held: Counter[str] = Counter()
    heldout: set[str] = set()
    for name in sorted(groups, key=lambda name: _rank(seed, name)):
        own = Counter(strata[key] for key in groups[name])
        now = sum(abs(target[stratum] - held[stratum]) for stratum in own)
        then = sum(abs(target[stratum] - held[stratum] - own[stratum]) for stratum in own)
        if then < now:
            held += own
            heldout.update(groups[name])
    return heldout


def group(keys: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Ids that are connected by keys, under the smallest key of each group (union-find)."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for own in keys.values():
        for key in own:
            low, high = sorted((root(own[0]), root(key)))
            parent[high] = low
    groups: dict[str, list[str]] = {}
    for name, own in keys.items():
        groups.setdefault(root(own[0]), []).append(name)
    return groups


def _rank(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}\0heldout\0{key}".encode()).digest()
