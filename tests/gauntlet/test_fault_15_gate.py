"""Fault 15: no model was compared with its parent; accuracy fell from 67.1 to 64.7 and was kept."""

import json
import shutil

import pytest

from mmar_jobs.engine import Request
from mmar_jobs.errors import ExitCode
from mmar_jobs.identity import ModelIdentity
from mmar_jobs.lineage import parent_of
from mmar_jobs.store import open_store
from tests.fakes import Script, think
from tests.gauntlet.conftest import HealthyRun
from tests.gauntlet.planted import RUN_ID, Exam, Row, Run

FAIL = "--fail-on-refusal"
ADAPTER = "iter-{}/adapter/adapter_model.safetensors"


def forgetful(exam: Exam) -> Script:
    """A child that is worse than its base: right before training, wrong after it."""

    def script(request: Request, draw: int, identity: ModelIdentity) -> str:
        is_right = identity.adapter_digest is None and bool(request.clip.waveform.any())
        answer = exam.gold if is_right else exam.wrong
        return think(answer(request.question_id), f"draw {draw}")

    return script


def lucky(exam: Exam) -> Script:
    """A child that is right on one question more."""
    first = next(key for key in exam.rows if "heldout" in key)

    def script(request: Request, draw: int, identity: ModelIdentity) -> str:
        knows = identity.adapter_digest is not None and request.question_id == first
        is_right = knows and bool(request.clip.waveform.any())
        return think((exam.gold if is_right else exam.wrong)(request.question_id))

    return script


def deaf(exam: Exam) -> Script:
    """A child that is right without listening."""

    def script(request: Request, draw: int, identity: ModelIdentity) -> str:
        knows = identity.adapter_digest is not None
        return think((exam.gold if knows else exam.wrong)(request.question_id))

    return script


@pytest.mark.parametrize(
    ("planted", "words"),
    [
        (forgetful, ("the child gains -100.0 points", "must gain more than nothing")),
        (lucky, ("may be luck", "must be below 0.05")),
        (deaf, ("the child is deaf", "100.0% right with its audio, 100.0% without")),
    ],
)
def test_15_a_child_that_is_not_better_is_refused(
    run_after: HealthyRun, planted: object, words: tuple[str, ...]
) -> None:
    """Worse, lucky or deaf: the verdict says so, and fails where the caller asked for that."""
    run = run_after("train")
    opener = run.opener(planted(run.exam))  # type: ignore[operator]
    stop = run.stop("evaluate", FAIL, opener=opener)
    stop.says(ExitCode.PROMOTION_REFUSED, "iteration 1", *words, FAIL)
    assert "keep_parent" == run.artifact("iter-1/verdict").manifest.metrics["decision"]


def test_15_after_a_refusal_the_parent_generates_again(run_after: HealthyRun) -> None:
    """Rollback is no action: the next round and infer read the last promotion off the verdicts."""
    run = run_after("train")
    run.stage("evaluate", opener=run.opener(forgetful(run.exam)))
    opener = run.opener()
    run.stage("generate", "--iteration", "2", opener=opener)
    run.stage("infer", opener=opener)
    assert [None, None] == [engine.identity.adapter_digest for engine in opener.engines]


def half_right(exam: Exam) -> Script:
    """A model with something left to learn whatever it has learned."""

    def script(request: Request, draw: int, identity: ModelIdentity) -> str:
        answer = exam.gold if draw % 2 else exam.wrong
        return think(answer(request.question_id), f"draw {draw}")

    return script


def test_15_the_next_parent_is_the_last_promoted_model(run_after: HealthyRun) -> None:
    """Promoted, then refused: iteration 3 starts from iteration 1, not from 2 or the base."""
    run = run_after("evaluate")
    two = ("--iteration", "2")
    run.stage("generate", *two, opener=run.opener(half_right(run.exam)))
    run.stage("filter", *two)
    run.stage("train", *two)
    first = run.artifact("iter-1/adapter").manifest.shards[0].sha256

    def worse(request: Request, draw: int, identity: ModelIdentity) -> str:
        if identity.adapter_digest == first:
            return run.exam.healthy(request, draw, identity)
        return think(run.exam.wrong(request.question_id))

    run.stage("evaluate", *two, opener=run.opener(worse))
    parent = parent_of(open_store(str(run.store)), RUN_ID, 3)
    assert (1, first) == (parent.iteration, parent.adapter_digest)


def forget_child(run: Run) -> None:
    """Put evaluate back to where only the parent has answered."""
    shutil.rmtree(run.path("iter-1/verdict"))
    for folder in run.path("answers").iterdir():
        inputs = json.loads((folder / "manifest.json").read_text())["inputs"]
        if inputs["model"] == run.artifact("iter-1/adapter").manifest.shards[0].sha256:
            shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("flag", "value", "change"),
    [
        ("--sampling.max-tokens", "32", "max_tokens: 64 -> 32"),
        ("--engine.dtype", "bfloat16", "engine.dtype: 'float32' -> 'bfloat16'"),
        ("--sampling.repetition-penalty", "1.2", "repetition_penalty: 1.0 -> 1.2"),
    ],
)
def test_15_parent_and_child_answer_under_the_same_settings(
    run_after: HealthyRun, flag: str, value: str, change: str
) -> None:
    """A parent in bf16 against a child in 4 bit, or with another length, is no comparison."""
    run = run_after("evaluate")
    forget_child(run)
    stop = run.stop("evaluate", flag, value)
    stop.says(ExitCode.SETTINGS, "other settings", change, "--run-id")


def test_15_parent_and_child_answer_the_same_questions(run_after: HealthyRun) -> None:
    """One answer fewer on one side: the pairs are gone, and no verdict is given."""
    run = run_after("evaluate")
    shutil.rmtree(run.path("iter-1/verdict"))
    muted = next(path.name for path in run.path("answers").iterdir() if "muted" in path.name)

    def lose(rows: list[Row]) -> list[Row]:
        return rows[1:]

    run.replant(f"answers/{muted.removesuffix('-muted')}", lose)
    stop = run.stop("evaluate")
    stop.says(ExitCode.DATA, "the child was not graded on the same questions", "1 differ")
