"""Which of several prompts a model answers better with, paired on the same questions; pure.

Not here: asking (asking.py), and searching among many (search.py).
"""

from collections.abc import Mapping
from typing import Final

from mmar_jobs.prompt import template_hash, variant_name
from mmar_jobs.records import Grade, Record
from mmar_jobs.stats import bootstrap_gain, holm, mcnemar, wilson_interval

_SEED: Final = 0  # of the bootstrap; a table printed twice is the same


class Outcome(Record):
    """What one greedy answer was worth, and how long it was in tokens."""

    grade: Grade
    num_tokens: int


Outcomes = Mapping[str, Outcome]  # by question id


class VariantRow(Record):
    """One variant beside the reference; its own row there has no gain.

    Every question counts: an answer that cannot be read or was cut off is not right. `gain` is in
    accuracy, `p_value` exact McNemar, two-sided, `p_value_holm` adjusted for the variants compared.
    """

    name: str
    template_hash: str
    num_questions: int
    accuracy: float
    accuracy_ci95: tuple[float, float]
    mean_tokens: float
    unparsed_share: float
    truncated_share: float
    gain: float = 0.0
    gain_ci95: tuple[float, float] = (0.0, 0.0)
    num_won: int = 0
    num_lost: int = 0
    p_value: float = 1.0
    p_value_holm: float = 1.0


def compare_variants(answers: Mapping[str, Outcomes], *, reference: str) -> list[VariantRow]:
    """One row a version, the reference first, then by accuracy; all answered the same questions."""
    others = [version for version in answers if version != reference]
    pairs = [count_pairs(answers[reference], answers[version]) for version in others]
    p_values = [mcnemar(num_lost, num_won) for num_lost, num_won in pairs]
    rows = []
    for version, (num_lost, num_won), p_value, adjusted in zip(
        others, pairs, p_values, holm(p_values), strict=True
    ):
        n = len(answers[version])
        found = {
            "gain": (num_won - num_lost) / n,
            "gain_ci95": bootstrap_gain(num_lost, num_won, n, seed=_SEED),
            "num_won": num_won,
            "num_lost": num_lost,
            "p_value": p_value,
            "p_value_holm": adjusted,
        }
        rows.append(_row(version, answers[version]).model_copy(update=found))
    rows.sort(key=lambda row: (-row.accuracy, row.mean_tokens))
    return [_row(reference, answers[reference]), *rows]


def count_pairs(before: Outcomes, after: Outcomes) -> tuple[int, int]:
    """How many questions were lost and won; ValueError unless both answered the same ones."""
    if before.keys() != after.keys():
        raise ValueError("two variants answered different questions")
    right = [(is_right(before[key]), is_right(after[key])) for key in before]
    return right.count((True, False)), right.count((False, True))


def mean_tokens(outcomes: Outcomes) -> float:
    """Tokens per answer."""
    return sum(outcome.num_tokens for outcome in outcomes.values()) / len(outcomes)


def is_right(outcome: Outcome) -> bool:
    """Whether the answer is the gold one."""
    return outcome.grade is Grade.CORRECT


def _row(version: str, outcomes: Outcomes) -> VariantRow:
    n = len(outcomes)
    grades = [outcome.grade for outcome in outcomes.values()]
    num_right = grades.count(Grade.CORRECT)
    return VariantRow(
        name=variant_name(version),
        template_hash=template_hash(version),
        num_questions=n,
        accuracy=num_right / n,
        accuracy_ci95=wilson_interval(num_right, n),
        mean_tokens=mean_tokens(outcomes),
        unparsed_share=grades.count(Grade.UNPARSED) / n,
        truncated_share=grades.count(Grade.TRUNCATED) / n,
    )
