"""How many questions of each source, and which; pure.

Not here: the sources. Ratios are exact up to the rounding of whole questions (largest remainder).
"""

import hashlib
from collections.abc import Mapping, Sequence
from fractions import Fraction

from mmar_jobs.errors import SettingsError


def apportion(weights: Mapping[str, Fraction], total: int) -> dict[str, int]:
    """Share `total` by `weights`: shares rounded down, and one more for the largest remainders.

    Ties go to the earlier source.
    """
    whole = sum(weights.values())
    shares = {name: total * weight / whole for name, weight in weights.items()}
    counts = {name: int(share) for name, share in shares.items()}
    by_remainder = sorted(weights, key=lambda name: counts[name] - shares[name])
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def check_ratios(ratios: Mapping[str, Fraction | None]) -> None:
    """Raise SettingsError where some sources have a ratio and others none."""
    lacking = [name for name, ratio in ratios.items() if ratio is None]
    if lacking and len(lacking) < len(ratios):
        raise SettingsError(f"--source {lacking[0]} has no ratio, others have: give all or none")


def mix(
    available: Mapping[str, int], ratios: Mapping[str, Fraction | None], total: int | None
) -> dict[str, int]:
    """Questions to take of each source: all where no ratio is given, else the most that keep them.

    Raises SettingsError where only some sources have a ratio or `total` is more than there is.
    """
    check_ratios(ratios)
    given = {name: ratio for name, ratio in ratios.items() if ratio is not None}
    if not given:
        given = {name: Fraction(count) for name, count in available.items() if count}
        if not given:
            return dict.fromkeys(available, 0)
    whole = sum(given.values())
    # Rounding down can leave almost one, rounding up can ask for one more than there is.
    most = min(int((available[name] + 1) * whole / ratio) for name, ratio in given.items())
    asked = most if total is None else total
    while asked > 0:
        counts = apportion(given, asked)
        short = [name for name, count in counts.items() if count > available[name]]
        if not short:
            return dict.fromkeys(available, 0) | counts
        if total is not None:
            raise SettingsError(
                f"--total {total} needs {counts[short[0]]} questions of {short[0]}, which has "
                f"{available[short[0]]}: lower --total or the ratio"
            )
        asked -= 1
    return dict.fromkeys(available, 0)


def choose(ids: Sequence[str], count: int, seed: int) -> set[str]:
    """`count` of `ids`, by a hash of each: adding others moves few in or out."""
    return set(sorted(ids, key=lambda key: _rank(seed, key))[:count])


def _rank(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}\0mix\0{key}".encode()).digest()
