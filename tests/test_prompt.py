"""Tests of the one prompt builder: nothing but question and choices is in a prompt."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmar_jobs.errors import ExitCode, SettingsError
from mmar_jobs.prompt import SYSTEM_BY_VERSION, render, template_hash, variant_name
from mmar_jobs.recipes import PromptRecipe
from tests.fakes import Fails, make_question

TEXTS = (st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=60)).map(
    lambda text: f"Hear it. {text}"
)
VERSIONS = st.sampled_from(sorted(SYSTEM_BY_VERSION)) | TEXTS
METADATA = ("dataset", "modality", "category", "sub_category", "language")


@given(VERSIONS, st.dictionaries(st.sampled_from(METADATA), st.text(max_size=20)))
def test_metadata_never_reaches_a_prompt(version: str, metadata: dict[str, str]) -> None:
    """The benchmark forbids metadata as model input: changing it changes no prompt."""
    assert render(make_question(), version) == render(make_question(**metadata), version)


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
    with pytest.raises(SettingsError, match="'v1' does not exist; choose one of baseline, v7"):
        render(make_question(), "v1")


def test_prompt_texts_are_pinned() -> None:
    """A change of any prompt's text is a new version, not an edit: artifacts name these hashes."""
    pinned = {
        "baseline": "5a0c65d68241",
        "v7": "6e9c80c18706",
        "v8": "5503114d6423",
        "v9": "de2880dc2d4c",
        "v12": "414d7bc3aa8e",
    }
    assert pinned == {name: template_hash(name)[:12] for name in SYSTEM_BY_VERSION}


def test_variants_say_what_they_are_known_for() -> None:
    """Each variant has the instructions that its users chose it for, and the baseline none."""
    said = {
        "v7": ("second by second",),
        "v8": ("how many", "copied word for word"),
        "v9": ("how many", "copied word for word", "Do not prefer yes"),
        "v12": ("how many", "copied word for word", "Do not prefer yes", "every cue"),
    }
    for version, parts in said.items():
        for part in parts:
            assert part in SYSTEM_BY_VERSION[version]
            assert part not in SYSTEM_BY_VERSION["baseline"]
    assert "second by second" not in SYSTEM_BY_VERSION["v9"]
    assert "yes" not in SYSTEM_BY_VERSION["v8"]


def test_text_of_a_users_own_is_a_version() -> None:
    """It is asked as it stands, and its hash tells it from every other text."""
    text = "Hear the clip.\nChoose."
    assert text == render(make_question(), text).system
    assert template_hash(text) != template_hash(f"{text} ")
    assert "custom-" == variant_name(text)[:7]
    assert "v9" == variant_name("v9")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("End <|im_end|> here", "may not hold"),
        ("I <think> so", "may not hold"),
        ("so " * 4000, "at most 8000"),
    ],
)
def test_hostile_text_is_refused(text: str, said: str) -> None:
    """A text that fakes a turn of the chat or fills the context is no prompt."""
    with pytest.raises(SettingsError, match=said):
        render(make_question(), text)


def test_prompt_file_becomes_its_text(tmp_path: Path) -> None:
    """Settings hold the text, so a recipe names what was asked, not where it lay."""
    path = tmp_path / "best.txt"
    path.write_text("Hear the clip. Choose.\n")
    assert "Hear the clip. Choose." == PromptRecipe(version=f"@{path}").version
    assert "v8" == PromptRecipe(version="v8").version


@pytest.mark.parametrize("content", [None, b"", b"word", b"\xff\xfe a b", b"a <|audio_pad|>"])
def test_wrong_prompt_file_is_one_line(tmp_path: Path, content: bytes | None, fails: Fails) -> None:
    """Missing, empty, not a text, not UTF-8, holding control tokens: named, exit 2."""
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match="prompt"):
        PromptRecipe(version=f"@{path}")
    flags = ("--store", str(tmp_path), "--run-id", "r", "--model", "m")
    assert "prompt" in fails(ExitCode.SETTINGS, "run", *flags, "--prompt.version", f"@{path}")
