"""Fault 6: answers were matched as substrings, so naming two choices was always right."""

import pytest

from mmar_jobs.engine import Request
from mmar_jobs.errors import ExitCode
from mmar_jobs.grade import grade
from mmar_jobs.identity import ModelIdentity
from mmar_jobs.records import Grade
from tests.fakes import make_candidate, make_question, think
from tests.gauntlet.conftest import HealthyRun
from tests.gauntlet.planted import Row

QUESTION = make_question(choices=("one", "two", "twenty one"), answer="one")


@pytest.mark.parametrize(
    "said",
    [
        "one or two",
        "one, two, twenty one",
        "The answer is one or two.",
        "- one\n- two\n- twenty one",
        "twenty one and one",
        "not one",
        "one hundred",
    ],
)
def test_06_an_answer_that_hedges_is_no_answer(said: str) -> None:
    """The earlier attempt graded "A or B" right, and its reward taught to restate all choices."""
    candidate = make_candidate(QUESTION, completion=think(said))
    assert Grade.UNPARSED is grade(candidate, QUESTION)


def test_06_a_longer_choice_is_not_the_shorter_one_in_it() -> None:
    """The words of "twenty one" hold "one", and it is another answer."""
    candidate = make_candidate(QUESTION, completion=think("Twenty one."))
    assert ("twenty one", Grade.WRONG) == (candidate.answer, grade(candidate, QUESTION))


def test_06_hedging_teaches_nothing(run_after: HealthyRun) -> None:
    """A model that restates all choices gives no example at all, and the run stops."""
    run = run_after("ingest")

    def hedge(request: Request, draw: int, identity: ModelIdentity) -> str:
        return think(" or ".join(run.exam.rows[request.question_id]["choices"]), f"draw {draw}")

    run.stage("generate", opener=run.opener(hedge))
    run.cli("filter").says(ExitCode.DATA, "none of 72 candidates became an example", "unparsed 72")


def test_06_a_record_that_claims_more_than_its_completion_is_refused(run_after: HealthyRun) -> None:
    """The answer in a record is only a copy: the filter reads the completion again and compares."""
    run = run_after("generate")

    def claim(rows: list[Row]) -> list[Row]:
        wrong = run.exam.wrong(rows[0]["question_id"])
        hedged = f"<think>hm</think>{rows[0]['answer']} or {wrong}"
        return [rows[0] | {"completion": hedged}, *rows[1:]]

    run.replant("iter-1/candidates", claim)
    run.cli("filter").says(ExitCode.DATA, "draw 0", "its record says answer", "completion does not")
