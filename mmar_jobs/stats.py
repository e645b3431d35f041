"""The few statistics by which a model is believed to be better: intervals and exact tests.

Not here: what follows from them (verdict.py). Standard library and numpy only, numpy inside the
functions that need it: importing scipy.stats would cost every command line a second.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Final

CONFIDENCE: Final = 0.95
NUM_RESAMPLES: Final = 10_000
_MAX_WHOLE: Final = 1_000


def wilson_interval(k: int, n: int, *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Interval of a proportion of k in n (Wilson 1927); (0, 1) where n is 0."""
    if not 0 <= k <= n:
        raise ValueError(f"{k} of {n} is not a proportion")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    centre = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    # Rounding must not push the ends over the proportion itself at 0 of n and n of n.
    return min(max(0.0, centre - half), k / n), max(min(1.0, centre + half), k / n)


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p-value of b against c discordant pairs (McNemar 1947); 1 for none."""
    return min(1.0, 2 * _fair_coin_tail(max(b, c), b + c))


def mcnemar_greater(b: int, c: int) -> float:
    """Exact one-sided p-value for c being really more frequent than b among discordant pairs."""
    return _fair_coin_tail(c, b + c)


def bootstrap_gain(
    b: int,
    c: int,
    n: int,
    *,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the accuracy difference (c - b) / n over n paired items.

    Drawing items with replacement is drawing the counts (b, c, ties) from a multinomial, so the
    resamples cost nothing. (0, 0) where n is 0.
    """
    import numpy as np  # noqa: PLC0415  # 0.1 s that `--help` should not pay

    if min(b, c) < 0 or b + c > n:
        raise ValueError(f"{b} + {c} discordant pairs among {n}")
    if n == 0:
        return 0.0, 0.0
    counts = np.random.default_rng(seed).multinomial(
        n, [b / n, c / n, (n - b - c) / n], size=num_resamples
    )
    gains = (counts[:, 1] - counts[:, 0]) / n
    tail = (1 - confidence) / 2
    low, high = np.quantile(gains, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_gain_by_cluster(
    gains: Sequence[float],
    sizes: Sequence[int],
    *,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
) -> tuple[float, float]:
    """Percentile bootstrap interval of sum(gains) / sum(sizes), drawing whole clusters.

    Cluster i has `sizes[i]` paired items, of which it won minus lost `gains[i]`. Clusters of equal
    gain and size are drawn together, from a multinomial, so a million cost no more than ten. (0, 0)
    where there are none.
    """
    import numpy as np  # noqa: PLC0415  # 0.1 s that `--help` should not pay

    if not len(sizes):
        return 0.0, 0.0
    kinds, counts = np.unique(np.stack([gains, sizes]), axis=1, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(
        len(sizes), counts / len(sizes), size=num_resamples
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile((drawn @ kinds[0]) / (drawn @ kinds[1]), [tail, 1 - tail])
    return float(low), float(high)


def fisher_fewer(k: int, n: int, num_right: int, num: int) -> float:
    """One-sided exact p-value for a group of n having as few as k of all `num_right` right ones.

    Fisher's exact test (1934) of the group against the other `num` - n items; both may be small. At
    least 8 digits; 1 where there are no others.
    """
    least, most = max(0, n - (num - num_right)), min(n, num_right)
    if not 0 <= num_right <= num or not 0 <= n <= num or not least <= k <= most:
        raise ValueError(f"{k} of {n} where {num_right} of {num} are right")
    if k == most:
        return 1.0
    if k * num >= n * num_right:  # from the mean on, terms would grow before they vanish
        return 1.0 - fisher_fewer(n - k - 1, n, num - num_right, num)
    log_term = _log_ways(num_right, k) + _log_ways(num - num_right, n - k) - _log_ways(num, n)
    total, share = 1.0, 1.0
    for i in range(k, least, -1):
        share *= i / (num_right - i + 1) * ((num - num_right - n + i) / (n - i + 1))
        total += share
        if share < 1e-17 * total:
            break
    return min(1.0, math.exp(log_term) * total)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number (Holm 1979); same order, each at most 1."""
    adjusted = [0.0] * len(p_values)
    floor = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = floor
    return adjusted


def above_chance(num_correct: int, num_choices: Sequence[int]) -> float:
    """Exact p-value for at least `num_correct` right by guessing; item i has `num_choices[i]`.

    The number right by guessing is Poisson-binomial; its distribution is built item by item, which
    only adds positive terms and therefore keeps small tails accurate.
    """
    import numpy as np  # noqa: PLC0415  # 0.1 s that `--help` should not pay

    if not 0 <= num_correct <= len(num_choices) or any(num < 1 for num in num_choices):
        raise ValueError(f"{num_correct} correct of {len(num_choices)} with choices {num_choices}")
    chances = np.zeros(len(num_choices) + 1)
    chances[0] = 1.0
    for num in num_choices:
        hits = chances[:-1] / num
        chances *= (num - 1) / num
        chances[1:] += hits
    return min(1.0, float(chances[num_correct:].sum()))


def minimum_detectable_gain(
    n: int, discordant_rate: float, *, alpha: float = 0.05, power: float = 0.8
) -> float | None:
    """Smallest accuracy difference that n pairs show with `power` in a two-sided McNemar test.

    `discordant_rate` is the share of items on which the two models differ. Normal approximation
    (Connor 1987), solved by bisection. None where even differences that all point one way would
    not do.
    """
    if n < 0 or not 0 <= discordant_rate <= 1:
        raise ValueError(f"{n} pairs with a discordant rate of {discordant_rate}")
    z_alpha = NormalDist().inv_cdf(1 - alpha / 2)
    z_power = NormalDist().inv_cdf(power)

    def is_detectable(gain: float) -> bool:
        spread = math.sqrt(max(0.0, discordant_rate - gain * gain))
        return gain * math.sqrt(n) >= z_alpha * math.sqrt(discordant_rate) + z_power * spread

    if discordant_rate == 0 or not is_detectable(discordant_rate):
        return None
    low, high = 0.0, discordant_rate
    while high - low > 1e-9:  # far below one item in any benchmark
        middle = (low + high) / 2
        low, high = (low, middle) if is_detectable(middle) else (middle, high)
    return high


def _fair_coin_tail(k: int, n: int) -> float:
    """P(at least k heads of n): one division of whole numbers, in logarithms where n is large.

    Whole numbers of n bits cost n^2: 0.1 ms at 1,000, minutes at 1,000,000.
    """
    if not 0 <= k <= n:
        raise ValueError(f"{k} of {n} discordant pairs")
    if k == 0:
        return 1.0
    if n <= _MAX_WHOLE:
        return sum(math.comb(n, i) for i in range(k, n + 1)) / (1 << n)
    if 2 * k < n:  # below the mean, terms would grow before they vanish
        return 1.0 - _fair_coin_tail(n - k + 1, n)
    total, share = 1.0, 1.0
    for i in range(k, n):
        share *= (n - i) / (i + 1)
        total += share
        if share < 1e-17 * total:
            break
    return min(1.0, math.exp(_log_ways(n, k) - n * math.log(2)) * total)


def _log_ways(n: int, k: int) -> float:
    """Logarithm of the number of ways to choose k of n."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
