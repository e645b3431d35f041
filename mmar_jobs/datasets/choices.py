"""Wrong choices that do not give the right one away: drawn so that every choice could be it.

Not here: what the answers are. A guesser who sees only text knows the choices S and how often each
answer a occurs, p(a). It gains nothing where P(a | S) is the same for every a in S. That holds if S
comes from a design of fixed size in which answer a has inclusion probability k p(a): then
P(S | a) is proportional to g(S) / p(a) for one function g of the set alone (conditional Poisson
sampling; Hajek 1964). So near and far numbers appear as often as they are true, the answer is the
largest, the median or the longest as often as any other, and it is drawn without a look at its
form. Where one answer makes up more than 1/k of a pool nothing can hide it; guess.py measures that.
"""

import random
from collections.abc import Iterable, Sequence
from itertools import accumulate, combinations
from typing import Final

from mmar_jobs.datasets.drafts import Draft, Rule
from mmar_jobs.records import canonical

_MOST_FITTED: Final = 64
_NUM_FITS: Final = 200
_MOST_CERTAIN: Final = 0.97  # an inclusion probability of 1 would need an infinite weight
_NUM_TRIES: Final = 2000
_NEAR_TEMPO: Final = 1.2
_OCTAVE: Final = (1.85, 2.16)

_Tails = tuple[list[tuple[str, float]], list[list[float]]]


class Pool:
    """The answers among which wrong choices are drawn, with what each is true of."""

    def __init__(self, drafts: Iterable[Draft], rule: Rule, num_choices: int) -> None:
        self._rule = rule
        self._text: dict[str, str] = {}
        self._owners: dict[str, set[str]] = {}
        counts: dict[str, int] = {}
        for draft in drafts:
            key = canonical(draft.answer)
            self._text.setdefault(key, draft.answer)
            counts[key] = counts.get(key, 0) + 1
            for text in (draft.answer, *draft.also_true):
                self._owners.setdefault(canonical(text), set()).add(draft.owner)
        self._keys = sorted(counts)
        self.num_choices = min(num_choices, len(self._keys))
        self._tails_of: dict[str, _Tails] = {}
        self._weights = fit_weights([counts[key] for key in self._keys], self.num_choices)
        self._sums = list(accumulate(self._weights))

    def draw(self, answer: str, dice: random.Random) -> tuple[str, ...]:
        """The answer and its wrong choices, shuffled; empty where the pool has no wrong choice."""
        own = canonical(answer)
        drawn = self._draw_keys(own, dice)
        if not drawn:
            return ()
        choices = [answer, *(self._text[key] for key in drawn)]
        dice.shuffle(choices)
        return tuple(choices)

    def _draw_keys(self, own: str, dice: random.Random) -> list[str]:
        num_wrong = self.num_choices - 1
        if num_wrong < 1:
            return []
        # Whole sets are rejected, not single draws: only so is P(S | a) proportional to g(S).
        for _ in range(_NUM_TRIES):
            if len(self._keys) <= _MOST_FITTED:
                drawn = self._draw_exactly(own, dice)
            else:
                drawn = dice.choices(self._keys, cum_weights=self._sums, k=num_wrong)
            if len({own, *drawn}) == self.num_choices and self._is_fair([own, *drawn]):
                return drawn
        return self._draw_in_turn(own, dice)

    def _draw_exactly(self, own: str, dice: random.Random) -> list[str]:
        """A set of the others with probability by the product of its weights, value by value."""
        others, tails = self._tails(own)
        drawn: list[str] = []
        for i, (key, weight) in enumerate(others):
            left = self.num_choices - 1 - len(drawn)
            if left and dice.random() * tails[i][left] < weight * tails[i + 1][left - 1]:
                drawn.append(key)
        return drawn

    def _tails(self, own: str) -> _Tails:
        """The other values, and the symmetric sums of the weights from each of them on."""
        if own not in self._tails_of:
            others = [
                (key, weight)
                for key, weight in zip(self._keys, self._weights, strict=True)
                if key != own
            ]
            weights = [weight for _, weight in others]
            degree = self.num_choices - 1
            tails = [_symmetric(weights[i:], degree) for i in range(len(others) + 1)]
            self._tails_of[own] = others, tails
        return self._tails_of[own]

    def _draw_in_turn(self, own: str, dice: random.Random) -> list[str]:
        """As many as go together, where a rule leaves too few full sets to hit one by chance."""
        drawn: list[str] = []
        for key in dice.sample(self._keys, len(self._keys)):
            if len(drawn) == self.num_choices - 1:
                break
            if key != own and self._is_fair([own, *drawn, key]):
                drawn.append(key)
        return drawn

    def _is_fair(self, keys: Sequence[str]) -> bool:
        """Whether at most one of the choices can be true of the same clip."""
        if self._rule == "any":
            return True
        return all(self._go_together(one, other) for one, other in combinations(keys, 2))

    def _go_together(self, one: str, other: str) -> bool:
        if self._rule == "owners":
            return self._owners[one].isdisjoint(self._owners[other])
        low, high = sorted((_number(one), _number(other)))
        ratio = high / max(low, 1e-9)
        return ratio >= _NEAR_TEMPO and not _OCTAVE[0] <= ratio <= _OCTAVE[1]


def most_each(counts: Sequence[int], num_choices: int) -> int:
    """How often one answer may occur so that none makes up more than 1/k of what is kept."""
    num_choices = min(num_choices, len(counts))
    kept = sorted(counts)
    while sum(kept) < num_choices * kept[-1]:
        # The largest may be 1/(k - 1) of the others; what is cut off changes nothing for those.
        most = max(kept[-2], sum(kept[:-1]) // (num_choices - 1)) if num_choices > 1 else kept[-1]
        most = min(most, kept[-1] - 1)
        kept = sorted(min(count, most) for count in kept)
    return kept[-1]


def _number(text: str) -> float:
    return float(text.split(maxsplit=1)[0])


def fit_weights(counts: Sequence[int], num_choices: int) -> list[float]:
    """Weights of the values under which value a is in a drawn set with probability k p(a).

    For many values k p(a) is small and the weights are the counts themselves; for few they are
    fitted by repeated proportional correction.
    """
    num_values, total = len(counts), sum(counts)
    if num_values > _MOST_FITTED or num_choices >= num_values:
        return [float(count) for count in counts]
    targets = _feasible([num_choices * count / total for count in counts], num_choices)
    weights = [target / (1 - target) for target in targets]
    for _ in range(_NUM_FITS):
        actual = inclusion(weights, num_choices)
        weights = [w * t / a for w, t, a in zip(weights, targets, actual, strict=True)]
        if max(abs(t - a) for t, a in zip(targets, actual, strict=True)) < 1e-6:
            break
    return weights


def _feasible(targets: list[float], num_choices: int) -> list[float]:
    """Cut targets at what is possible and give the rest to the others, keeping the sum."""
    certain: set[int] = set()
    while True:
        left = num_choices - _MOST_CERTAIN * len(certain)
        free = sum(target for i, target in enumerate(targets) if i not in certain)
        scaled = [
            _MOST_CERTAIN if i in certain else target * left / free
            for i, target in enumerate(targets)
        ]
        over = {i for i, target in enumerate(scaled) if target > _MOST_CERTAIN}
        if not over or len(certain | over) == len(targets):
            return [min(target, _MOST_CERTAIN) for target in scaled]
        certain |= over


def inclusion(weights: Sequence[float], num_choices: int) -> list[float]:
    """Probability of each value to be in a set drawn with probability by the product of weights."""
    whole = _symmetric(weights, num_choices)[num_choices]
    rest = [
        _symmetric([*weights[:i], *weights[i + 1 :]], num_choices - 1)[num_choices - 1]
        for i in range(len(weights))
    ]
    return [weight * part / whole for weight, part in zip(weights, rest, strict=True)]


def _symmetric(weights: Sequence[float], degree: int) -> list[float]:
    """Elementary symmetric polynomials up to `degree`."""
    sums = [1.0] + [0.0] * degree
    for weight in weights:
        for j in range(degree, 0, -1):
            sums[j] += weight * sums[j - 1]
    return sums
