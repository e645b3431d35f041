"""From ratings to the rubric score of a prediction file, with what was not evaluated beside it.

Not here: the protocol for one item (rubric.py), calling the judge (rate.py). Pure.
"""

from collections.abc import Mapping, Sequence

from mmar_jobs.judge.journal import Identity, Rating
from mmar_jobs.judge.rubric import (
    NUM_RATINGS,
    SYSTEM,
    USER,
    Interval,
    interval,
    item_score,
    rating,
)
from mmar_jobs.records import Question, Record
from mmar_jobs.stats import bootstrap_gain_by_cluster


class RubricItem(Record):
    """One question: a wrong answer scores 0, a right one its ratings; None: NOT EVALUATED."""

    id: str
    is_right: bool
    score: float | None
    ratings: tuple[float, ...]
    not_evaluated: str = ""


class RubricGroup(Record):
    """Rubric score of some questions, as fractions of 1; `num_not_evaluated` are never zeros."""

    num_items: int
    num_right: int
    num_not_evaluated: int
    score: Interval


class RubricScore(RubricGroup):
    """The score of a prediction file, by whom it was given, and what the judge was told.

    `score_ci95` is a bootstrap over the evaluated items. Tokens are the server's own counts over
    all ratings in the journal, 0 where it gives none; `price` is in the currency of --price.
    """

    score_ci95: tuple[float, float]
    by_category: dict[str, RubricGroup]
    by_modality: dict[str, RubricGroup]
    judge: Identity
    system_prompt: str
    user_prompt: str
    reported_model: str | None
    fingerprints: tuple[str, ...]
    num_ratings: int
    prompt_tokens: int
    completion_tokens: int
    price: float | None
    items: tuple[RubricItem, ...]


def score_items(
    questions: Sequence[Question],
    right_ids: frozenset[str],
    ratings: Mapping[tuple[str, int], Rating],
    reasons: Mapping[str, str],
) -> list[RubricItem]:
    """Every question with its score or with why it has none."""
    found = []
    for question in questions:
        if question.id not in right_ids:
            found.append(RubricItem(id=question.id, is_right=False, score=0.0, ratings=()))
            continue
        given = [
            rating(ratings[question.id, number].scores)
            for number in range(NUM_RATINGS)
            if (question.id, number) in ratings
        ]
        is_whole = len(given) == NUM_RATINGS
        found.append(
            RubricItem(
                id=question.id,
                is_right=True,
                score=item_score(given) if is_whole else None,
                ratings=tuple(given),
                not_evaluated="" if is_whole else reasons.get(question.id, "not asked"),
            )
        )
    return found


def summarize(
    questions: Sequence[Question],
    items: Sequence[RubricItem],
    ratings: Sequence[Rating],
    *,
    identity: Identity,
    prices: tuple[float, float] | None,
) -> RubricScore:
    """The score of all items; `prices` are for a million prompt and reply tokens."""
    known = [item.score for item in items if item.score is not None]
    prompt_tokens = sum(given.prompt_tokens for given in ratings)
    completion_tokens = sum(given.completion_tokens for given in ratings)
    return RubricScore(
        **_group(items).model_dump(),
        score_ci95=bootstrap_gain_by_cluster(known, [1] * len(known), seed=0),
        by_category=_by([question.category for question in questions], items),
        by_modality=_by([question.modality for question in questions], items),
        judge=identity,
        system_prompt=SYSTEM,
        user_prompt=USER,
        reported_model=ratings[0].reported_model if ratings else None,
        fingerprints=tuple(sorted({given.fingerprint for given in ratings if given.fingerprint})),
        num_ratings=len(ratings),
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        price=None
        if prices is None
        else (prompt_tokens * prices[0] + completion_tokens * prices[1]) / 1e6,
        items=tuple(items),
    )


def _group(items: Sequence[RubricItem]) -> RubricGroup:
    return RubricGroup(
        num_items=len(items),
        num_right=sum(item.is_right for item in items),
        num_not_evaluated=sum(item.score is None for item in items),
        score=interval([item.score for item in items]),
    )


def _by(names: Sequence[str], items: Sequence[RubricItem]) -> dict[str, RubricGroup]:
    members: dict[str, list[RubricItem]] = {}
    for name, item in zip(names, items, strict=True):
        members.setdefault(name, []).append(item)
    return {name: _group(members[name]) for name in sorted(members)}
