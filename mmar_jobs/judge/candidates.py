"""A run's right candidates as predictions that a judge rates, and its scores read back; pure.

Not here: the files (candidates_command.py), asking the judge (rate.py), what a score earns
(mmar_jobs/rewards.py).
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from mmar_jobs.errors import DataError
from mmar_jobs.grade import grade
from mmar_jobs.judge.result import RubricScore
from mmar_jobs.judge.rubric import Rubric
from mmar_jobs.records import Candidate, Grade, Question
from mmar_jobs.rewards import rated_id


def rows_to_rate(
    candidates: Iterable[Candidate],
    questions: Mapping[str, Question],
    rubrics: Mapping[str, Rubric],
) -> Iterator[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """Prediction, question and rubric of each right candidate, under an id of its own."""
    for candidate in candidates:
        question, rubric = questions[candidate.question_id], rubrics.get(candidate.question_id)
        if rubric is None or grade(candidate, question) is not Grade.CORRECT:
            continue
        key = {"id": rated_id(candidate)}
        prediction = {
            "thinking_prediction": candidate.thinking,
            "answer_prediction": candidate.answer,
        }
        points = [point.model_dump() for point in rubric.criteria]
        yield (
            key | prediction,
            question.model_dump(mode="json") | key,
            key | {"rubric": points, "thinking": rubric.reference},
        )


def read_scores(data: bytes, where: str) -> dict[str, dict[str, float]]:
    """The judge's scores by question and candidate, from what `score --rubrics --json` printed.

    DataError for anything else, and where a candidate was not evaluated: that is no score of 0.
    """
    try:
        items = RubricScore.model_validate_json(data).items
    except ValidationError:
        raise DataError(
            f"{where} is not what `mmar-jobs score --rubrics --json` prints: give its output"
        ) from None
    found: dict[str, dict[str, float]] = {}
    for item in items:
        if item.score is None:
            raise DataError(
                f"{where}: candidate {item.id} was NOT EVALUATED ({item.not_evaluated}): run the "
                "same score command again, its ratings are kept"
            )
        found.setdefault(item.id.rsplit("#", 2)[0], {})[item.id] = item.score
    return found
