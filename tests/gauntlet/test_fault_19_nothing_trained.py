"""Fault 19: with nothing to train on, an untouched adapter was saved, and the run exited 0."""

import shutil

import pytest
import torch

from mmar_jobs.engine import Request
from mmar_jobs.errors import ExitCode
from mmar_jobs.identity import ModelIdentity
from mmar_jobs.qlora.recipes import TrainRecipe
from mmar_jobs.qlora.trainer import Surroundings, train
from tests import qlora_cases
from tests.fakes import think
from tests.gauntlet.conftest import HealthyRun
from tests.gauntlet.planted import stopped

RATES = "--optim.learning-rates"


def test_19_no_right_answer_is_no_round(run_after: HealthyRun) -> None:
    """A round in which nothing was right teaches nothing, and says what became of all of it."""
    run = run_after("ingest")

    def wrong(request: Request, draw: int, identity: ModelIdentity) -> str:
        return think(run.exam.wrong(request.question_id), f"draw {draw}")

    run.stage("generate", opener=run.opener(wrong))
    stop = run.cli("filter")
    stop.says(ExitCode.DATA, "none of 72 candidates", "wrong 72", "nothing to train on")
    run.cli("train").says(ExitCode.DATA, "iter-1/examples", "run the filter stage first")


def test_19_no_examples_is_an_error_of_the_trainer_too(run_after: HealthyRun) -> None:
    """Whatever wrote an empty list of examples: the trainer does not save what it did not train."""
    run = run_after("filter")
    run.replant("iter-1/examples", lambda rows: [])
    run.cli("train").says(ExitCode.DATA, "nothing to train", "0 examples")
    assert not run.path("iter-1/adapter/manifest.json").exists()


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        (RATES, "0", "greater than 0"),
        (RATES, "nan", "optim"),
        (RATES, "[]", "at least 1"),
        ("--optim.num-epochs", "0", "num-epochs"),
        ("--lora.rank", "0", "rank"),
        ("--lora.alpha", "0", "alpha"),
        ("--lora.dropout", "1", "dropout"),
    ],
)
def test_19_settings_that_train_nothing_are_refused(
    run_after: HealthyRun, flag: str, value: str, words: str
) -> None:
    """A learning rate or a number of steps of zero is a wrong setting, not a quick round."""
    run_after("filter").cli("train", flag, value).says(ExitCode.SETTINGS, words)


def test_19_a_rate_too_small_to_move_anything_is_an_error(run_after: HealthyRun) -> None:
    """All steps were taken, and every factor is what it was: the adapter is not saved."""
    run = run_after("filter")
    stop = run.cli("train", RATES, "1e-60")
    stop.says(
        ExitCode.DATA, "nothing was trained: the adapter is what it was before the first step"
    )
    assert not run.path("iter-1/adapter/manifest.json").exists()


def test_19_factors_that_are_not_numbers_are_no_adapter() -> None:
    """The other end: a rate that blows the last step up leaves factors that are not finite."""
    lora = qlora_cases.adapted(fill=False)
    rows, audio = qlora_cases.make_rows([(12, 4), (10, 5)])
    recipe = TrainRecipe(learning_rate=1e-2, examples_per_step=2, token_budget=64)
    name, factor = next(iter(lora.factors().items()))

    def explode(*_: object) -> None:
        with torch.no_grad():
            factor.fill_(torch.inf)

    around = Surroundings(on_step=explode)
    stop = stopped(lambda: train(lora, rows, recipe, audio=audio, around=around))
    stop.says(ExitCode.DATA, name, "not finite", "learning rate")


def test_19_a_frozen_factor_is_an_error() -> None:
    """A switch thrown elsewhere (inference_mode, requires_grad) must not give an untrained part."""
    lora = qlora_cases.adapted(fill=False)
    rows, audio = qlora_cases.make_rows([(12, 4), (10, 5)])
    lora.sites["model.layers.0.self_attn.v_proj"].requires_grad_(requires_grad=False)
    recipe = TrainRecipe(learning_rate=1e-2, examples_per_step=2, token_budget=64)
    stop = stopped(lambda: train(lora, rows, recipe, audio=audio))
    stop.says(ExitCode.DATA, "LoRA of attention are frozen")


def test_19_a_run_without_questions_never_starts(run_after: HealthyRun) -> None:
    """An empty file is an error of the data, not a run with no work."""
    run = run_after("ingest")
    shutil.rmtree(run.path("questions"))
    empty = run.store / "empty.jsonl"
    empty.write_text("\n")
    stop = run.cli("ingest", "--questions", str(empty))
    stop.says(ExitCode.DATA, "no usable row in the train questions")
