"""Tests of rubric scores as a reward: candidates go to a judge as files and come back as scores."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmar_jobs.artifact import require_artifact
from mmar_jobs.cli import run_command
from mmar_jobs.errors import ExitCode
from mmar_jobs.examples import read_examples
from mmar_jobs.layout import TRAIN, examples_key, questions_key
from mmar_jobs.questions import read_split
from mmar_jobs.records import PolicyExample
from mmar_jobs.settings import GenerateCommand, IngestCommand
from mmar_jobs.stages import generate, ingest
from mmar_jobs.store import open_store
from mmar_jobs.tiny.build import TinyWorld
from tests.fakes import Fails, FakeOpener
from tests.judge.server import Answer, completion, marks, serve
from tests.loop_run import RUN_ID, Scripted, command_of, edges_for
from tests.prediction_files import write_rows

REWARDED = ("--objective", "grpo", "--reward.rubric", "0.5")
MASTER = "draw 1: I hear it."


def prefers_draw_1(number: int, request: dict[str, Any]) -> Answer:
    """Both points for one draw, one point for the others."""
    del number
    is_best = MASTER in request["messages"][1]["content"]
    return completion(marks(1, 1 if is_best else 0))


@pytest.fixture
def run_flags(world: TinyWorld, model_folder: Path, tmp_path: Path) -> list[str]:
    """A run with candidates: draws 1 and 2 of four are right."""
    plain = command_of(world, model_folder, tmp_path / "store")
    command = plain.model_copy(update={"objective": "grpo"})
    edges = edges_for(command, FakeOpener(Scripted(world)))
    for stage, kind in ((ingest, IngestCommand), (generate, GenerateCommand)):
        names = kind.model_fields.keys() & type(command).model_fields.keys()
        stage.run(kind(**{name: getattr(command, name) for name in names}), edges)
    return ["--store", command.store, "--run-id", RUN_ID]


@pytest.fixture
def rubric_file(run_flags: list[str], tmp_path: Path) -> Path:
    """Rubrics of two training questions."""
    points = [{"name": name, "scoring_point": name} for name in ("hears", "concludes")]
    ids = [question.id for question in questions_of(run_flags)[:2]]
    return write_rows(tmp_path / "rubrics.jsonl", [{"id": key, "rubric": points} for key in ids])


def questions_of(run_flags: list[str]) -> list[Any]:
    """The training questions."""
    store = open_store(run_flags[1])
    return read_split(require_artifact(store, questions_key(RUN_ID), stage="ingest"), TRAIN)


def judged(
    run_flags: list[str], rubric_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Path:
    """What `score` printed of the candidates that `candidates` wrote."""
    folder = tmp_path / "rated"
    flags = [*run_flags, "--rubric-file", str(rubric_file), "--output", str(folder)]
    assert ExitCode.DONE == run_command("candidates", flags)
    capsys.readouterr()
    with serve(prefers_draw_1) as server:
        told = [str(folder / "predictions.jsonl"), "--meta", str(folder / "questions.jsonl")]
        told += ["--rubric-file", str(folder / "rubrics.jsonl"), "--rubrics", "--json"]
        told += ["--judge", server.url, "--judge-model", "judge-1"]
        assert ExitCode.DONE == run_command("score", told)
    assert 2 * 2 * 5 == len(server.requests)  # questions with a rubric, right draws, ratings
    scores = tmp_path / "scores.json"
    scores.write_text(capsys.readouterr().out)
    return scores


def test_a_judge_rewards_candidates(
    run_flags: list[str], rubric_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Right answers with a rubric earn by its score, all others as without a judge."""
    scores = judged(run_flags, rubric_file, tmp_path, capsys)
    rewarded = [*run_flags, *REWARDED, "--rubric-scores", str(scores)]
    assert ExitCode.DONE == run_command("filter", rewarded)
    examples = require_artifact(open_store(run_flags[1]), examples_key(RUN_ID, 1), stage="filter")
    rated = {json.loads(line)["id"] for line in rubric_file.read_text().splitlines()}
    found = {
        (example.question_id in rated, example.draw, round(example.reward, 6))
        for example in read_examples(examples)
        if isinstance(example, PolicyExample)
    }
    wrong = {(is_rated, draw, 0.1) for is_rated in (True, False) for draw in (0, 3)}
    assert found == wrong | {
        (True, 1, 1.6),
        (True, 2, 1.35),
        (False, 1, 1.1),
        (False, 2, 1.1),
    }
    assert "rubric_scores" in examples.manifest.recipe


def test_reward_and_scores_belong_together(run_flags: list[str], fails: Fails) -> None:
    """A weight without scores, or scores that nothing weighs, is exit 2 before anything is read."""
    assert "belong together" in fails(ExitCode.SETTINGS, "filter", *run_flags, *REWARDED)
    unused = [*run_flags, "--rubric-scores", "scores.json"]
    assert "belong together" in fails(ExitCode.SETTINGS, "filter", *unused)


def test_other_scores_are_refused(
    run_flags: list[str],
    rubric_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fails: Fails,
) -> None:
    """Unrated, of another run, of other words, or no scores at all: exit 3 says which."""
    scores = judged(run_flags, rubric_file, tmp_path, capsys)
    row = json.loads(scores.read_text())
    first = row["items"][0]
    question_id, draw, said = first["id"].rsplit("#", 2)
    broken = {
        "was NOT EVALUATED": first | {"score": None, "not_evaluated": "busy"},
        "are of other candidates": first | {"id": f"{question_id}#{draw}#{said[::-1]}"},
        "rates no question of this run": first | {"id": f"other#{draw}#{said}"},
        "is not what": {},
    }
    for expected, item in broken.items():
        scores.write_text(json.dumps(row | {"items": [item]}))
        rewarded = [*run_flags, *REWARDED, "--rubric-scores", str(scores)]
        assert expected in fails(ExitCode.DATA, "filter", *rewarded)


def test_no_candidate_with_a_rubric_is_an_error(
    run_flags: list[str], tmp_path: Path, fails: Fails
) -> None:
    """Rubrics of other questions leave nothing to rate."""
    point = {"name": "hears", "scoring_point": "hears"}
    other = write_rows(tmp_path / "other.jsonl", [{"id": "other", "rubric": [point]}])
    flags = [*run_flags, "--rubric-file", str(other), "--output", str(tmp_path / "rated")]
    assert "ids must be those of training questions" in fails(ExitCode.DATA, "candidates", *flags)


def test_a_whole_run_cannot_wait_for_a_judge(
    world: TinyWorld, model_folder: Path, tmp_path: Path, fails: Fails
) -> None:
    """`run` refuses the reward before hours of generation."""
    flags = ["--store", str(tmp_path / "store"), "--run-id", RUN_ID, "--model", str(model_folder)]
    flags += ["--questions", str(world.train), "--benchmark", str(world.benchmark)]
    flags += ["--lora.quantization", "none", *REWARDED]
    assert "start the stages one by one" in fails(ExitCode.SETTINGS, "run", *flags)
    assert not (tmp_path / "store" / questions_key(RUN_ID)).exists()
