"""One prediction file by itself: where it is wrong, and how its predictions are odd.

Not here: the signs of one prediction (signs.py), what it looks like (survey_text.py, page.py).

Shapes: Q questions.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmar_jobs.analysis.items import Groups, Items
from mmar_jobs.analysis.outcomes import Matcher, Outcomes
from mmar_jobs.analysis.signs import SIGN_TEXT, Sign, find_signs, script_counts
from mmar_jobs.datasets.mmar import BENCHMARK_MARK
from mmar_jobs.records import Record
from mmar_jobs.stats import fisher_fewer, holm, wilson_interval
from mmar_jobs.submission import MAX_THINKING_CHARACTERS

ALPHA: Final = 0.05
_NUM_BINS: Final = 40
_LONGEST_SHOWN: Final = 2 * MAX_THINKING_CHARACTERS  # one runaway must not flatten all others


class GroupErrors(Record):
    """Wrong answers of one group; `num_excess` are those beyond the share of all other questions.

    `p_value_holm` is Fisher's exact test, one-sided: so few right by chance, were the group like
    the others; adjusted for the groups of its dimension.
    """

    dimension: str
    name: str
    n: int
    num_wrong: int
    error_rate: float
    error_rate_ci95: tuple[float, float]
    num_excess: float
    p_value_holm: float

    @property
    def is_worse(self) -> bool:
        """Whether it is measurably worse than the other questions."""
        return self.p_value_holm < ALPHA


class SignCount(Record):
    """How often a sign was seen, and how often predictions with and without it are right."""

    sign: Sign
    text: str
    num: int
    accuracy_with: float | None
    accuracy_without: float | None
    ids: tuple[str, ...]


class Lengths(Record):
    """Lengths of thinking in characters; `bins` count right and wrong answers between `edges`.

    The last bin also has all that are longer.
    """

    median: int
    percentile_95: int
    longest: int
    edges: tuple[int, ...]
    bins: tuple[tuple[int, int], ...]

    @property
    def is_cut(self) -> bool:
        """Whether the last bin has longer ones than it says."""
        return self.longest >= self.edges[-1]


class Survey(Record):
    """The whole file; `scripts` counts predictions by the script of most of their thinking."""

    name: str
    matcher: Matcher
    num_items: int
    num_wrong: int
    error_rate: float
    error_rate_ci95: tuple[float, float]
    num_invalid: int
    dimensions: dict[str, tuple[GroupErrors, ...]]
    signs: tuple[SignCount, ...]
    lengths: Lengths
    scripts: dict[str, int]
    wrong_ids: tuple[str, ...]

    @property
    def signs_seen(self) -> list[SignCount]:
        """The signs that any prediction has."""
        return [sign for sign in self.signs if sign.num]


def survey(items: Items, file: Outcomes, *, matcher: Matcher) -> tuple[Survey, list[list[Sign]]]:
    """Look at every prediction; also returns the signs of each question."""
    num, num_wrong = len(items.ids), int((~file.right_Q).sum())
    signs_Q: list[list[Sign]] = [[] for _ in range(num)]
    lengths_Q = np.zeros(num, dtype=np.int64)
    scripts: Counter[str] = Counter()
    for line in file.lines:
        row = line.value()
        i = items.place[row["id"]]
        thinking = row.get("thinking_prediction") or ""
        lengths_Q[i] = len(thinking)
        scripts.update(name for name, _ in script_counts(thinking).most_common(1))
        text = items.question(i).text
        signs_Q[i] = find_signs(row, text, items.choices_Q[i], is_named=bool(file.named_Q[i]))
    found = Survey(
        name=file.name,
        matcher=matcher,
        num_items=num,
        num_wrong=num_wrong,
        error_rate=num_wrong / num,
        error_rate_ci95=wilson_interval(num_wrong, num),
        num_invalid=num - int(file.named_Q.sum()),
        dimensions={
            name: _errors(name, groups, file.right_Q) for name, groups in items.groups.items()
        },
        signs=tuple(_count(sign, signs_Q, file.right_Q, items.ids) for sign in Sign),
        lengths=_lengths(lengths_Q, file.right_Q),
        scripts=dict(scripts.most_common()),
        wrong_ids=tuple(items.ids[i] for i in np.flatnonzero(~file.right_Q)),
    )
    return found, signs_Q


def worst(found: Survey, num: int) -> list[GroupErrors]:
    """The groups with most to gain: measurably worse ones first, then by their excess errors."""
    rows = [row for rows in found.dimensions.values() for row in rows if row.num_excess > 0]
    return sorted(rows, key=lambda row: (not row.is_worse, -row.num_excess))[:num]


def failed_rows(
    items: Items, file: Outcomes, signs_Q: Sequence[Sequence[Sign]]
) -> Iterator[dict[str, Any]]:
    """Every wrong prediction with its question, marked so that ingest refuses it as a question."""
    for i in np.flatnonzero(~file.right_Q).tolist():
        row = file.row(i)
        yield {
            BENCHMARK_MARK: True,
            **items.question(i).model_dump(exclude={"audio_sha256", "audio_s"}),
            "answer_prediction": row.get("answer_prediction"),
            "thinking_prediction": row.get("thinking_prediction"),
            "signs": list(signs_Q[i]),
        }


def _errors(dimension: str, groups: Groups, right_Q: NDArray[np.bool_]) -> tuple[GroupErrors, ...]:
    size = len(groups.names)
    ns = np.bincount(groups.codes_Q, minlength=size).tolist()
    rights = np.bincount(groups.codes_Q[right_Q], minlength=size).tolist()
    num, num_right = len(right_Q), int(right_Q.sum())
    elsewhere = [
        (num_right - right) / (num - n) if num > n else right / n
        for n, right in zip(ns, rights, strict=True)
    ]
    p_values = holm(
        [fisher_fewer(right, n, num_right, num) for n, right in zip(ns, rights, strict=True)]
    )
    return tuple(
        GroupErrors(
            dimension=dimension,
            name=groups.names[i],
            n=ns[i],
            num_wrong=ns[i] - rights[i],
            error_rate=1 - rights[i] / ns[i],
            error_rate_ci95=wilson_interval(ns[i] - rights[i], ns[i]),
            num_excess=elsewhere[i] * ns[i] - rights[i],
            p_value_holm=p_values[i],
        )
        for i in range(size)
    )


def _count(
    sign: Sign, signs_Q: Sequence[Sequence[Sign]], right_Q: NDArray[np.bool_], ids: Sequence[str]
) -> SignCount:
    has_Q = np.array([sign in signs for signs in signs_Q], dtype=np.bool_)
    return SignCount(
        sign=sign,
        text=SIGN_TEXT[sign],
        num=int(has_Q.sum()),
        accuracy_with=float(right_Q[has_Q].mean()) if has_Q.any() else None,
        accuracy_without=float(right_Q[~has_Q].mean()) if not has_Q.all() else None,
        ids=tuple(ids[i] for i in np.flatnonzero(has_Q).tolist()),
    )


def _lengths(lengths_Q: NDArray[np.int64], right_Q: NDArray[np.bool_]) -> Lengths:
    longest = int(lengths_Q.max())
    shown_Q = np.minimum(lengths_Q, _LONGEST_SHOWN)
    end = int(shown_Q.max()) + 1
    width = -(-end // _NUM_BINS)
    edges = list(range(0, end + width, width))
    rights, _ = np.histogram(shown_Q[right_Q], edges)
    wrongs, _ = np.histogram(shown_Q[~right_Q], edges)
    return Lengths(
        median=int(np.median(lengths_Q)),
        percentile_95=int(np.quantile(lengths_Q, 0.95)),
        longest=longest,
        edges=tuple(edges),
        bins=tuple(zip(rights.tolist(), wrongs.tolist(), strict=True)),
    )
