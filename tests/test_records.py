"""Tests of the records: what they refuse, and that one JSON line holds all of them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mmar_jobs.records import (
    MAX_CHOICES,
    Candidate,
    Example,
    Finish,
    Prediction,
    Question,
    Zone,
    canonical,
)
from tests.fakes import make_candidate, make_question

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
CHOICES = st.lists(TEXT.filter(str.strip), min_size=2, max_size=6, unique_by=canonical)


@st.composite
def questions(draw: st.DrawFn) -> Question:
    """Any valid question."""
    choices = tuple(draw(CHOICES))
    return Question(
        id=draw(TEXT.filter(bool)),
        audio="a.wav",
        text=draw(TEXT.filter(bool)),
        choices=choices,
        answer=draw(st.none() | st.sampled_from(choices)),
        category=draw(TEXT),
        language=draw(st.none() | TEXT),
        source_ids=tuple(draw(st.lists(TEXT, max_size=3))),
    )


@given(questions())
def test_question_survives_its_json_line(question: Question) -> None:
    """A question is one line of JSON and comes back equal."""
    line = question.model_dump_json()
    assert "\n" not in line
    assert question == Question.model_validate_json(line)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"choices": ("one",)}, "needs 2 to 26 choices, has 1"),
        ({"choices": ()}, "needs 2 to 26 choices, has 0"),
        ({"choices": tuple(map(str, range(MAX_CHOICES + 1)))}, "has 27"),
        ({"choices": ("one", " ")}, "has an empty choice"),
        ({"choices": ("one", "ONE ")}, "has duplicate choices"),
        ({"answer": "four"}, "its answer 'four' is not among its choices"),
        ({"answer": "One"}, "its answer 'One' is not among its choices"),
        ({"id": ""}, "id"),
        ({"text": ""}, "text"),
        ({"audio": ""}, "audio"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_bad_question_is_refused(values: dict[str, Any], reason: str) -> None:
    """Each thing that is wrong with a question is named."""
    with pytest.raises(ValidationError, match=reason):
        make_question(**values)


def test_records_are_frozen() -> None:
    """Nothing changes a record after it was checked."""
    question = make_question()
    with pytest.raises(ValidationError):
        question.answer = "two"  # type: ignore[misc]


@given(TEXT)
def test_canonical_is_its_own_canonical_form(text: str) -> None:
    """Canonical form is idempotent and blind to outer and repeated whitespace."""
    assert canonical(text) == canonical(f"  {canonical(text)}\t")


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(Finish))
def test_candidate_survives_its_json_line(logprob_sum: float, finish: Finish) -> None:
    """A candidate comes back equal, its logprob to the last bit."""
    candidate = make_candidate(make_question(), logprob_sum=logprob_sum, finish=finish)
    assert candidate == Candidate.model_validate_json(candidate.model_dump_json())


def test_examples_have_weight() -> None:
    """A weight of zero would be an example that is not one."""
    with pytest.raises(ValidationError, match="weight"):
        Example(
            question_id="q",
            draw=0,
            completion="",
            weight=0,
            zone=Zone.HARD,
            rate=0.1,
            num_tokens=1,
            audio_sha256="",
            prompt_hash="",
            model_hash="",
        )


def test_prediction_survives_its_json_line() -> None:
    """A prediction comes back equal."""
    prediction = Prediction(
        id="q", thinking_prediction="a\nb", answer_prediction="one", votes={"one": 3}
    )
    assert prediction == Prediction.model_validate_json(prediction.model_dump_json())
