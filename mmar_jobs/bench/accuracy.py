"""The bench of accuracy: how many of a question set's answers are right, item by item.

Not here: answering (the stages), what right means (score.py).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from mmar_jobs.bench.difference import details_of
from mmar_jobs.bench.result import Environment, Measurement
from mmar_jobs.errors import DataError
from mmar_jobs.manifest import canonical_json, sha256
from mmar_jobs.records import Question
from mmar_jobs.score import official_correct, strict_correct

_MATCHERS: Final[Mapping[str, Callable[[str, str, Sequence[str]], bool]]] = {
    "official": official_correct,
    "strict": strict_correct,
}


def measure_accuracy(
    answers: Mapping[str, str | None], questions: Sequence[Question], environment: Environment
) -> Iterator[Measurement]:
    """Official and strict accuracy; a question without an answer is wrong.

    The environment's hardware is where the figures were counted, which they do not depend on.
    """
    unknown = sorted(answers.keys() - {question.id for question in questions})
    if unknown:
        raise DataError(f"{len(unknown)} predictions are of no question, first {unknown[0]}")
    unanswerable = [question.id for question in questions if question.answer is None]
    if unanswerable:
        raise DataError(f"question {unanswerable[0]} has no answer to hold predictions against")
    items = sha256(canonical_json([[q.id, q.answer, list(q.choices)] for q in questions]))
    for name, is_correct in _MATCHERS.items():
        right = {
            question.id: is_correct(
                answers.get(question.id) or "", question.answer or "", question.choices
            )
            for question in questions
        }
        yield Measurement(
            name=f"accuracy/{name}",
            unit="share",
            direction="higher",
            values=(sum(right.values()) / len(right),),
            case={"items": len(right)},
            environment=environment,
            detail=details_of(right, items),
        )
