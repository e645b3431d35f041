"""Fault 5: a server that answered 500 was recorded as a model that answered wrong."""

import pytest

from mmar_jobs.engine import Request
from mmar_jobs.errors import ExitCode, TryAgain
from mmar_jobs.grade import grade
from mmar_jobs.identity import ModelIdentity
from mmar_jobs.records import Candidate, Finish, Grade
from mmar_jobs.stages.asking import check_errors
from mmar_jobs.stages.infer import predict
from tests.fakes import make_candidate, make_question
from tests.gauntlet.conftest import HealthyRun
from tests.gauntlet.planted import Row, stopped


@pytest.mark.parametrize(
    ("before", "stage", "split"),
    [
        ("ingest", "generate", "train"),
        ("train", "evaluate", "heldout"),
        ("evaluate", "infer", "benchmark"),
    ],
)
def test_05_an_error_is_not_an_answer(
    run_after: HealthyRun, before: str, stage: str, split: str
) -> None:
    """In the earlier attempt a restart of the server lowered the accuracy of the model."""
    run = run_after(before)
    broken = next(key for key in run.exam.rows if split in key)
    stop = run.stop(stage, opener=run.opener(broken=frozenset([broken])))
    stop.says(ExitCode.DATA, broken, "503 from the server", "an error is not an answer")


def test_05_a_server_that_is_gone_is_asked_again_later(run_after: HealthyRun) -> None:
    """A whole outage is no data fault: the code tells the cluster to start the stage again."""
    run = run_after("ingest")

    def gone(request: Request, draw: int, identity: ModelIdentity) -> str:
        raise TryAgain("the server at :8901 is gone: start it, then run the same command again")

    run.stop("generate", opener=run.opener(gone)).says(ExitCode.TRY_AGAIN, "server", "again")
    assert ExitCode.DONE == run.cli("generate").code


def test_05_single_errors_count_as_no_attempt() -> None:
    """An error is neither right nor wrong: it does not touch the rate of its question."""
    question = make_question()
    failed = make_candidate(question, completion="", finish=Finish.ERROR, error="503")
    assert Grade.ERROR is grade(failed, question)


def test_05_a_question_without_any_answer_is_not_submitted() -> None:
    """Few errors are tolerated among the votes of a question, but not instead of all of them."""
    question = make_question("q5")
    failed = [
        make_candidate(question, draw, completion="", finish=Finish.ERROR, error="503")
        for draw in range(3)
    ]
    right = make_candidate(question, 3)
    assert "one" == predict([question], [*failed, right])[0].answer_prediction
    stop = stopped(lambda: predict([question], failed))
    stop.says(ExitCode.DATA, "question q5", "503", "again")


def test_05_an_error_in_place_of_an_answer_is_never_stored() -> None:
    """One error among 200 questions asked once is rare, and still all that one of them got."""
    questions = [make_question(f"q{index}") for index in range(200)]
    candidates = [make_candidate(question) for question in questions]
    candidates[7] = make_candidate(questions[7], completion="", finish=Finish.ERROR, error="503")
    stop = stopped(lambda: check_errors(candidates))
    stop.says(ExitCode.DATA, "failed on 1 of 200", "question q7", "503")
    check_errors([*candidates, make_candidate(questions[7], 1)])


def test_05_the_gate_compares_no_errors(run_after: HealthyRun) -> None:
    """An error among the held-out answers stops the comparison: it would count against one side."""
    run = run_after("evaluate")
    [folder] = [path for path in run.path("answers").iterdir() if path.name.endswith("-muted")]

    def fail(rows: list[Row]) -> list[Row]:
        lost = Candidate.model_validate(rows[0]).model_copy(
            update={"finish": Finish.ERROR, "answer": None, "error": "503"}
        )
        return [lost.model_dump(mode="json"), *rows[1:]]

    run.replant(f"answers/{folder.name}", fail)
    (run.path("iter-1", "verdict") / "manifest.json").unlink()
    (run.path("iter-1", "verdict") / "plan.json").unlink()
    run.cli("evaluate").says(ExitCode.DATA, "1 of 8 answers", "engine errors", "not wrong answers")
