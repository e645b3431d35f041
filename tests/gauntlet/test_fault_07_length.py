"""Fault 7: a completion that ran into the length limit was read as if the model had finished it."""

from mmar_jobs.engine import Completion, Request
from mmar_jobs.errors import ExitCode
from mmar_jobs.grade import grade, parse
from mmar_jobs.identity import ModelIdentity
from mmar_jobs.records import Finish, Grade
from tests.fakes import make_candidate, make_question
from tests.gauntlet.conftest import HealthyRun


def test_07_a_cut_completion_holds_no_answer() -> None:
    """What reads "one" may have been on its way to "one hundred": only a stop is an answer."""
    question = make_question()
    cut = make_candidate(question, finish=Finish.LENGTH)
    assert cut.completion.endswith("</think>one")
    assert (None, Grade.TRUNCATED) == (cut.answer, grade(cut, question))


def test_07_cut_completions_teach_nothing(run_after: HealthyRun) -> None:
    """All right but all cut: nothing to train on, and the message counts them."""
    run = run_after("ingest")
    run.stage("generate", opener=run.opener(finish=Finish.LENGTH))
    assert 72 == run.artifact("iter-1/candidates").manifest.counts["num_length"]
    run.cli("filter").says(ExitCode.DATA, "none of 72 candidates", "truncated 72")


def test_07_cut_answers_are_not_submitted(run_after: HealthyRun) -> None:
    """A limit that cuts every answer of the benchmark stops infer instead of filling in choices."""
    run = run_after("evaluate")
    stop = run.stop("infer", opener=run.opener(finish=Finish.LENGTH))
    stop.says(ExitCode.DATA, "6 of 6 questions have no answer", "--sampling.max-tokens")


def test_07_the_real_engine_says_when_it_cut(run_after: HealthyRun) -> None:
    """The engine that users get reports LENGTH for what did not end by itself."""
    run = run_after("ingest")
    assert ExitCode.DONE == run.cli("generate", "--sampling.max-tokens", "2").code
    counts = run.artifact("iter-1/candidates").manifest.counts
    assert (72, 0) == (counts["num_length"] + counts.get("num_stop", 0), counts["num_parsed"])
    assert counts["num_length"] > 60


def test_07_an_engine_that_ran_past_the_limit_is_not_believed(run_after: HealthyRun) -> None:
    """More tokens than were allowed mean that the limit never reached the engine."""
    run = run_after("ingest")

    def ramble(request: Request, draw: int, identity: ModelIdentity) -> str:
        return "<think>" + "and again " * 100 + "</think>one"

    stop = run.stop("generate", opener=run.opener(ramble))
    stop.says(ExitCode.DATA, "tokens", "--sampling.max-tokens 64", "ignored")


def test_07_where_no_thinking_ended_all_is_thinking() -> None:
    """A cut completion keeps its text for the report, as thinking without an answer."""
    completion = Completion("<think>I count one, two", Finish.LENGTH, (1, 2), (-1.0, -2.0), 13)
    parsed = parse(completion.text, completion.finish, ("one", "two"))
    assert ("I count one, two", None) == parsed
