"""Hold the results of a change against a baseline: which figures belong together, and the verdict.

Not here: the statistics of one figure (difference.py), the words (gate_text.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mmar_jobs.bench.difference import Judgement, Outcome, Rule, judge
from mmar_jobs.bench.result import Measurement
from mmar_jobs.errors import DataError


@dataclass(frozen=True, slots=True)
class Comparison:
    """Every figure of both sides.

    `judgements` are of figures that both have; `problems` are why others were not judged, each one
    line, and make the comparison fail; `added` are figures that the baseline does not have yet, and
    `stated` such without a better and a worse.
    """

    judgements: tuple[Judgement, ...]
    problems: tuple[str, ...]
    added: tuple[Measurement, ...]
    stated: tuple[Measurement, ...]
    rule: Rule

    @property
    def worse(self) -> list[Judgement]:
        """The figures that are worse."""
        return [one for one in self.judgements if one.outcome is Outcome.WORSE]


def compare_results(
    new: Sequence[Measurement], baseline: Sequence[Measurement], rule: Rule
) -> Comparison:
    """Judge each figure of `new` by the one of the same name, unit and case in `baseline`.

    DataError where not one can be compared, since that says nothing at all.
    """
    before = {one.key: one for one in baseline}
    measured = {one.key for one in new}
    stated = tuple(one for one in new if one.direction == "none")
    judged = [one for one in new if one.direction != "none"]
    pairs = [(one, before[one.key]) for one in judged if one.key in before]
    problems = [_lost(one) for one in baseline if one.key not in measured]
    judgements: list[Judgement] = []
    for one, other in pairs:
        problem = _unlike(one, other)
        if problem:
            problems.append(problem)
            continue
        try:
            judgements.append(judge(one, other, rule, num_judged=len(pairs)))
        except DataError as error:
            problems.append(str(error))
    if not judgements:
        first = problems[0] if problems else "they have no figure in common"
        raise DataError(f"nothing of the new results can be compared with the baseline: {first}")
    return Comparison(
        judgements=tuple(judgements),
        problems=tuple(problems),
        added=tuple(one for one in judged if one.key not in before),
        stated=stated,
        rule=rule,
    )


def _lost(one: Measurement) -> str:
    return f"{one.name} ({case_text(one)}) is in the baseline and not in the new results"


def _unlike(one: Measurement, other: Measurement) -> str:
    """Why both must not be compared, or an empty text."""
    foreign = one.environment.foreign_to(other.environment)
    if foreign:
        return f"{one.name} was measured on other hardware: {', '.join(foreign)}"
    if one.direction != other.direction:
        return f"{one.name}: {one.direction} is better now, {other.direction} was before"
    return ""


def case_text(one: Measurement) -> str:
    """The settings that the figure depends on, in a few words."""
    given = [f"{key} {value}" for key, value in one.case.items() if value is not None]
    return ", ".join(given) or "no settings"
