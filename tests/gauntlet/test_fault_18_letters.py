"""Fault 18: questions were given letters from A to D, and 185 of 1,000 have not four choices."""

import json
from collections.abc import Sequence

import pytest

from mmar_jobs.datasets.mmar import BadRow, parse_questions
from mmar_jobs.engine import Request
from mmar_jobs.errors import ExitCode
from mmar_jobs.grade import grade
from mmar_jobs.identity import ModelIdentity
from mmar_jobs.prompt import render
from mmar_jobs.records import Grade, Question
from mmar_jobs.stages.infer import predict
from mmar_jobs.submission import pack, problems
from tests.fakes import make_candidate, make_question, think
from tests.gauntlet.conftest import HealthyRun

WORDS = ("dog", "cat", "bird", "horse", "cow", "sheep")


@pytest.mark.parametrize("num_choices", [2, 3, 4, 5, 6])
def test_18_every_number_of_choices_goes_all_the_way(num_choices: int) -> None:
    """From prompt to submission: the last choice is asked for, recognised, graded and handed in."""
    choices = WORDS[:num_choices]
    question = make_question(choices=choices, answer=choices[-1])
    assert all(f"- {choice}" in render(question, "v9").user for choice in choices)
    candidate = make_candidate(question)
    assert (choices[-1], Grade.CORRECT) == (candidate.answer, grade(candidate, question))
    predictions = predict([question], [candidate])
    assert [] == problems(pack(predictions, [question]), [question])


@pytest.mark.parametrize("said", ["B", "(B)", "b)", "B.", "The answer is B", "2", "E", "F"])
@pytest.mark.parametrize("num_choices", [2, 4, 6])
def test_18_a_letter_is_no_answer(num_choices: int, said: str) -> None:
    """Nobody showed the model letters: which choice it means by one would be a guess."""
    question = make_question(choices=WORDS[:num_choices], answer="cat")
    assert Grade.UNPARSED is grade(make_candidate(question, completion=think(said)), question)


def test_18_a_choice_may_be_a_letter() -> None:
    """Where "B" is the text of a choice (a chord, a key) it is an answer like any other."""
    question = make_question(choices=("A", "B", "C sharp"), answer="B")
    assert Grade.CORRECT is grade(make_candidate(question, completion=think("B")), question)


def test_18_a_model_that_answers_in_letters_teaches_nothing(run_after: HealthyRun) -> None:
    """The run stops with the reason instead of learning from guesses."""
    run = run_after("ingest")

    def letter(request: Request, draw: int, identity: ModelIdentity) -> str:
        return think("ABCD"[draw % 4], f"draw {draw}")

    run.stage("generate", opener=run.opener(letter))
    run.cli("filter").says(ExitCode.DATA, "none of 72 candidates", "unparsed 72", "choices")


def parse_row(choices: Sequence[str], answer: str) -> Question | BadRow:
    """One benchmark row as the parser sees it."""
    row = {"id": "r", "audio_path": "a.wav", "question": "?", "choices": choices, "answer": answer}
    [parsed] = parse_questions([json.dumps(row)], "meta")
    return parsed


def test_18_rows_that_ask_nothing_are_refused() -> None:
    """One choice, one choice twice, or an answer that is none of them: a bad row with a reason."""
    reasons = [
        row.reason
        for row in (parse_row(["a"], "a"), parse_row(["a", "A "], "a"), parse_row(["a", "b"], "c"))
        if isinstance(row, BadRow)
    ]
    assert 3 == len(reasons)
    for words, reason in zip(("2 to 26", "duplicate", "not among"), reasons, strict=True):
        assert words in reason
