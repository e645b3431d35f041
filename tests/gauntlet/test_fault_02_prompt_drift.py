"""Fault 2: three copies of the prompt, in three programs, had drifted apart."""

import pytest

from mmar_jobs.errors import ExitCode
from mmar_jobs.prompt import render
from mmar_jobs.records import Question
from tests.fakes import make_question
from tests.gauntlet.conftest import HealthyRun

DRIFTED = ("--prompt.version", "v7")


@pytest.mark.parametrize(
    ("before", "stage"),
    [("generate", "filter"), ("filter", "train"), ("train", "evaluate"), ("evaluate", "infer")],
)
def test_02_no_stage_may_ask_with_another_prompt(
    run_after: HealthyRun, before: str, stage: str
) -> None:
    """The earlier attempt taught one prompt and was then asked with another."""
    stop = run_after(before).cli(stage, *DRIFTED)
    is_setting = stage in ("evaluate", "infer")
    stop.says(ExitCode.SETTINGS if is_setting else ExitCode.DATA, "prompt", "v7")


def test_02_the_next_iteration_keeps_the_prompt(run_after: HealthyRun) -> None:
    """A child of one prompt is not the parent of a round with another."""
    stop = run_after("evaluate").cli("generate", "--iteration", "2", *DRIFTED)
    stop.says(ExitCode.SETTINGS, "prompt", "v7")


def test_02_a_finished_stage_is_not_made_again_with_another_prompt(run_after: HealthyRun) -> None:
    """The prompt is part of the recipe: nothing is silently reused, and nothing overwritten."""
    stop = run_after("generate").cli("generate", *DRIFTED)
    stop.says(ExitCode.SETTINGS, "prompt.version: 'v9' -> 'v7'", "--run-id")


def test_02_a_reworded_question_is_another_prompt(run_after: HealthyRun) -> None:
    """The hash covers the question as well: candidates cannot be joined to a changed text."""
    run = run_after("generate")

    def reword(rows: list[dict[str, object]]) -> list[dict[str, object]]:
        return [row | {"text": f"{row['text']} Listen well."} for row in rows]

    run.replant("questions", reword)
    run.cli("filter").says(ExitCode.DATA, "draw 0", "asked with another prompt", "v9")


def test_02_no_metadata_reaches_the_prompt() -> None:
    """The benchmark forbids category, language and modality as input; none of them is rendered."""
    bare: Question = make_question(category="")
    told: Question = make_question(category="Music", modality="speech", language="de")
    assert render(bare, "v9").hash == render(told, "v9").hash
