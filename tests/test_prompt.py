"""Tests of the one prompt builder: nothing but question and choices is in a prompt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmar_jobs.errors import SettingsError
from mmar_jobs.prompt import SYSTEM_BY_VERSION, render, template_hash
from tests.fakes import make_question

VERSIONS = st.sampled_from(sorted(SYSTEM_BY_VERSION))
METADATA = ("dataset", "modality", "category", "sub_category", "language")


@given(VERSIONS, st.sampled_from(METADATA))
def test_metadata_never_reaches_a_prompt(version: str, field: str) -> None:
    """The benchmark forbids metadata as model input: changing it changes no prompt."""
    plain = make_question()
    told = make_question(**{field: "told the model"})
    assert render(plain, version) == render(told, version)


@given(VERSIONS, st.booleans())
def test_answer_never_reaches_a_prompt(version: str, known: bool) -> None:
    """The gold answer is no part of what is asked."""
    plain, told = make_question(answer=None), make_question(answer="two" if known else "one")
    assert render(plain, version).hash == render(told, version).hash


def test_prompt_is_question_and_choices_verbatim() -> None:
    """The user's text is the question and a list of all its choices, whatever their number."""
    question = make_question(text="Which?", choices=("A or B", "A", "B", "none", "all"), answer="A")
    expected = "Which?\nChoices:\n- A or B\n- A\n- B\n- none\n- all"
    assert expected == render(question, "v7").user


def test_sound_stands_before_the_text() -> None:
    """The user's turn is the clip, then the text."""
    user = render(make_question(), "v9").messages()[1]
    assert ["audio", "text"] == [part["type"] for part in user["content"]]


def test_versions_differ() -> None:
    """No two versions have the same text, so the version can be told by the hash."""
    assert len(SYSTEM_BY_VERSION) == len({template_hash(name) for name in SYSTEM_BY_VERSION})


def test_unknown_version_is_a_settings_error() -> None:
    """The message lists the versions there are."""
    with pytest.raises(SettingsError, match="'v1' does not exist; choose one of v7, v8, v9, v12"):
        render(make_question(), "v1")


def test_prompt_texts_are_pinned() -> None:
    """A change of any prompt's text is a new version, not an edit: artifacts name these hashes."""
    pinned = {
        "v7": "5a0c65d68241",
        "v8": "b72266675f38",
        "v9": "de2880dc2d4c",
        "v12": "414d7bc3aa8e",
    }
    assert pinned == {name: template_hash(name)[:12] for name in SYSTEM_BY_VERSION}
