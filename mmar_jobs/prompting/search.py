"""Successive halving over prompt variants, and the one test that its winner must pass; pure.

The winner of many looks good on the questions that chose it even if all are equal, so what it is
worth is only said by questions that chose nothing. Not here: proposals (proposals.py), asking
(asking.py). Source: Jamieson and Talwalkar 2016, with accuracy over a growing set of questions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mmar_jobs.errors import SettingsError
from mmar_jobs.prompt import variant_name
from mmar_jobs.prompting.compare import (
    Outcomes,
    VariantRow,
    compare_variants,
    count_pairs,
    mean_tokens,
)
from mmar_jobs.records import Question, Record
from mmar_jobs.split import split_by_source
from mmar_jobs.stats import mcnemar, minimum_detectable_gain

MIN_BLOCK: Final = 8  # fewer questions than this rank variants by luck alone

Ask = Callable[[str, Sequence[Question]], Outcomes]


@dataclass(frozen=True)
class SearchPlan:
    """Disjoint blocks of questions, one a rung, and those that only the winner is asked."""

    blocks: tuple[tuple[Question, ...], ...]
    confirmation: tuple[Question, ...]


class RungRow(Record):
    """One variant against the reference on all questions so far."""

    name: str
    num_won: int
    num_lost: int
    p_value: float
    mean_tokens: float
    is_kept: bool


class Rung(Record):
    """One round: variants from best to worst, of which the first ones stay."""

    num_questions: int
    rows: tuple[RungRow, ...]


class Found(Record):
    """What a search found.

    `is_better` only where the confirmation says so: more won than lost, and p < alpha.
    `confirmation` is None where no variant was ahead of the reference after the last rung.
    `detectable_gain` is the smallest gain that the confirmation would show four times of five, as
    far as the two differ on its questions; None where none would do.
    """

    reference: str
    winner: str
    winner_text: str
    is_better: bool
    alpha: float
    rungs: tuple[Rung, ...]
    confirmation: VariantRow | None = None
    detectable_gain: float | None = None


def plan_search(
    questions: Sequence[Question], num_variants: int, *, confirm_share: float, seed: int
) -> SearchPlan:
    """Split by source into rungs and confirmation; each rung asks twice the new questions.

    `num_variants` counts without the reference. SettingsError where there are too few questions.
    """
    searched, confirmation = split_by_source(questions, fraction=confirm_share, seed=seed)
    if min(len(searched), len(confirmation)) < MIN_BLOCK:
        raise SettingsError(
            f"{len(searched)} questions to search with and {len(confirmation)} to confirm by, both "
            f"need {MIN_BLOCK}: give more questions or another --confirm-share"
        )
    num_rungs = max(1, (num_variants - 1).bit_length())
    while num_rungs > 1 and len(searched) < MIN_BLOCK * (2**num_rungs - 1):
        num_rungs -= 1
    ends = [len(searched) * (2**rung - 1) // (2**num_rungs - 1) for rung in range(1, num_rungs + 1)]
    blocks = [tuple(searched[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
    return SearchPlan(tuple(blocks), tuple(confirmation))


def search(
    versions: Sequence[str], plan: SearchPlan, ask: Ask, *, reference: str, alpha: float
) -> Found:
    """Drop variants rung by rung, then confirm the last one against the reference."""
    alive = [version for version in dict.fromkeys(versions) if version != reference]
    if not alive:
        raise SettingsError("nothing to search among: give variants other than the reference")
    num_at_first = len(alive)
    answers: dict[str, Outcomes] = {version: {} for version in (reference, *alive)}
    rungs = []
    for number, block in enumerate(plan.blocks, 1):
        for version in (reference, *alive):
            answers[version] = {**answers[version], **ask(version, block)}
        num_kept = max(1, round(num_at_first ** (1 - number / len(plan.blocks))))
        ranked = sorted(alive, key=lambda version: _rank(version, answers, reference))
        rungs.append(_rung(ranked, answers, reference, num_kept=num_kept))
        alive = ranked[:num_kept]
    found = Found(
        reference=variant_name(reference),
        winner=variant_name(alive[0]),
        winner_text=alive[0],
        is_better=False,
        alpha=alpha,
        rungs=tuple(rungs),
    )
    num_lost, num_won = count_pairs(answers[reference], answers[alive[0]])
    if num_won <= num_lost:
        return found
    asked = {version: ask(version, plan.confirmation) for version in (reference, alive[0])}
    row = compare_variants(asked, reference=reference)[1]
    return found.model_copy(
        update={
            "is_better": row.num_won > row.num_lost and row.p_value < alpha,
            "confirmation": row,
            "detectable_gain": minimum_detectable_gain(
                row.num_questions, (row.num_won + row.num_lost) / row.num_questions, alpha=alpha
            ),
        }
    )


def _rank(version: str, answers: Mapping[str, Outcomes], reference: str) -> tuple[int, float, str]:
    """Most right first; of equal ones the shorter answers, which cost less."""
    num_lost, num_won = count_pairs(answers[reference], answers[version])
    return num_lost - num_won, mean_tokens(answers[version]), version


def _rung(
    ranked: Sequence[str], answers: Mapping[str, Outcomes], reference: str, *, num_kept: int
) -> Rung:
    rows = []
    for place, version in enumerate(ranked):
        num_lost, num_won = count_pairs(answers[reference], answers[version])
        rows.append(
            RungRow(
                name=variant_name(version),
                num_won=num_won,
                num_lost=num_lost,
                p_value=mcnemar(num_lost, num_won),
                mean_tokens=mean_tokens(answers[version]),
                is_kept=place < num_kept,
            )
        )
    return Rung(num_questions=len(answers[reference]), rows=tuple(rows))
