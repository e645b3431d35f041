"""Seeded choices that are the same on every machine.

Not here: floats. Only raw Philox bits and integer arithmetic are used, because numpy promises the
bit stream of its generators but not what its distributions make of it.
"""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


class Dice:
    """A stream of choices, named by `key`: equal keys give equal streams."""

    def __init__(self, *key: str | int) -> None:
        digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
        self._bits = np.random.Philox(key=int.from_bytes(digest[:16], "little"))

    def below(self, bound: int) -> int:
        """One integer in [0, bound); the bias of the modulo is under 2**-50 for bounds to 2**13."""
        return int(self._bits.random_raw()) % bound

    def between(self, low: int, high: int) -> int:
        """One integer in [low, high], both ends included."""
        return low + self.below(high - low + 1)

    def one_of(self, options: Sequence[T]) -> T:
        """One of `options`, all equally likely."""
        return options[self.below(len(options))]

    def shuffled(self, options: Sequence[T]) -> tuple[T, ...]:
        """All of `options` in a random order (Fisher-Yates)."""
        items = list(options)
        for last in range(len(items) - 1, 0, -1):
            other = self.below(last + 1)
            items[last], items[other] = items[other], items[last]
        return tuple(items)

    def signed(self, num: int, *, peak: int) -> NDArray[np.int64]:
        """`num` integers in [-peak, peak]."""
        raw = np.asarray(self._bits.random_raw(num))
        return (raw % np.uint64(2 * peak + 1)).astype(np.int64) - peak
