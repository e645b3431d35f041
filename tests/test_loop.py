"""Tests of the whole loop: its order, its resumption at every point, and its verdicts."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mmar_jobs import loop
from mmar_jobs.artifact import Artifact, find_artifact
from mmar_jobs.engine import Request
from mmar_jobs.errors import DataError, GateError, PromotionRefused, SettingsError, TryAgain
from mmar_jobs.identity import ModelIdentity
from mmar_jobs.layout import (
    ADAPTER_WEIGHTS,
    PREDICTIONS,
    adapter_key,
    candidates_key,
    checkpoint_key,
    examples_key,
    muted_key,
    predictions_key,
    verdict_key,
)
from mmar_jobs.lineage import best_model, read_verdict, shard_sha256
from mmar_jobs.recipes import FilterRecipe, GateRecipe, OptimSettings, PromptRecipe, SamplingRecipe
from mmar_jobs.records import Candidate, Example, Prediction
from mmar_jobs.settings import EvaluateCommand, GenerateCommand, RunCommand
from mmar_jobs.stages import evaluate, generate
from mmar_jobs.store import Store, open_store
from mmar_jobs.submission import unpack_result
from mmar_jobs.summary import render_summary
from mmar_jobs.tiny.build import TinyWorld
from mmar_jobs.verdict import Decision
from tests.fakes import FakeOpener, Track, think
from tests.loop_run import RUN_ID, Scripted, command_of, edges_for


def go(command: RunCommand, opener: FakeOpener, **options: Any) -> Artifact:
    """Run the loop."""
    return loop.run(command, edges_for(command, opener, **options))


@pytest.fixture(scope="module")
def done(
    world: TinyWorld, model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunCommand, Artifact, Track]:
    """One whole run of two iterations; read only."""
    store = tmp_path_factory.mktemp("done") / "store"
    command = command_of(world, model_folder, store, iterations=2)
    track = Track()
    return command, go(command, FakeOpener(Scripted(world)), track=track), track


def test_run_ends_with_a_right_submission(
    done: tuple[RunCommand, Artifact, Track], world: TinyWorld
) -> None:
    """The promoted model answers, and the zip holds its answer to every benchmark question."""
    command, submission, _ = done
    result = unpack_result(submission.read_bytes("submission.zip"))
    answers = {row["id"]: row["answer_prediction"] for row in map(json.loads, result.splitlines())}
    rows = Scripted(world).rows
    assert 6 == len(answers)
    assert {key: rows[key]["answer"] for key in answers} == answers
    assert 1 == best_model(open_store(command.store), RUN_ID)[0].iteration


def test_stages_run_in_order(done: tuple[RunCommand, Artifact, Track]) -> None:
    """Each iteration asks, trains, and then examines; a model's exam is taken once."""
    expected = [
        *("checking train clips", "checking benchmark clips", "checking heldout clips"),
        *("iteration 1: candidates", "iteration 1: encoding", "iteration 1: training"),
        *("iteration 1: held-out, parent", "iteration 1: held-out, child"),
        "iteration 1: held-out, child, muted",
        *("iteration 2: candidates", "iteration 2: encoding", "iteration 2: training"),
        *("iteration 2: held-out, child", "iteration 2: held-out, child, muted"),
        "benchmark",
    ]
    assert expected == done[2].labels
    assert done[2].totals == done[2].done


def test_second_iteration_starts_from_the_promoted(
    done: tuple[RunCommand, Artifact, Track],
) -> None:
    """Iteration 2 was answered by and trained from iteration 1's adapter, and kept it."""
    store = open_store(done[0].store)
    verdicts = [find_artifact(store, verdict_key(RUN_ID, index)) for index in (1, 2)]
    decisions = [read_verdict(found).decision for found in verdicts if found]
    assert [Decision.PROMOTE, Decision.KEEP_PARENT] == decisions
    first = find_artifact(store, adapter_key(RUN_ID, 1))
    second = find_artifact(store, adapter_key(RUN_ID, 2))
    assert first is not None
    assert second is not None
    assert shard_sha256(first, ADAPTER_WEIGHTS) == second.manifest.inputs["parent"]
    hashes = set()
    for index in (1, 2):
        candidates = find_artifact(store, candidates_key(RUN_ID, index))
        assert candidates is not None
        hashes |= {candidate.model_hash for candidate in candidates.records(Candidate)}
    assert 2 == len(hashes)


def test_examples_are_correct_siblings(
    done: tuple[RunCommand, Artifact, Track], world: TinyWorld
) -> None:
    """Two correct draws of each question, with the rate of the four."""
    examples = find_artifact(open_store(done[0].store), examples_key(RUN_ID, 1))
    assert examples is not None
    found = list(examples.records(Example))
    assert 24 == len(found)
    assert {1, 2} == {example.draw for example in found}
    assert {0.5} == {example.rate for example in found}
    rows = Scripted(world).rows
    assert all(e.completion.endswith(rows[e.question_id]["answer"]) for e in found)


def test_summary_is_read_off_the_artifacts(done: tuple[RunCommand, Artifact, Track]) -> None:
    """One row an iteration: candidates, valid rate, zone, examples, accuracies and verdict."""
    console = Console(file=io.StringIO(), width=200)
    console.print(render_summary(open_store(done[0].store), RUN_ID))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in said.splitlines()]
    first, second = [row for row in rows if row[0] in ("1", "2")]
    assert ["48", "100%", "12/12", "24"] == first[1:5] == second[1:5]
    assert ["0.0%", "100.0%"] == first[6:8]
    assert ["100.0%", "100.0%"] == second[6:8]
    assert ("promote", "keep_parent") == (first[-1], second[-1])


def contents(store: Store) -> dict[str, bytes]:
    """All shards of a store; manifests hold costs, which differ."""
    keys = [key for key in store.list("") if not key.endswith(("manifest.json", "report.html"))]
    return {key: store.read(key) for key in keys}


def test_second_run_does_nothing(done: tuple[RunCommand, Artifact, Track]) -> None:
    """A finished run, started again, opens no engine and changes no byte."""
    command, submission, _ = done
    before = contents(open_store(command.store))
    opener = FakeOpener(lambda *_: "never asked")
    assert submission.manifest == go(command, opener).manifest
    assert [] == opener.engines
    assert before == contents(open_store(command.store))


@pytest.mark.parametrize("raise_at", [3, 19, 25, 43, 49, 55])
def test_stopped_run_resumes_to_the_same_bytes(
    world: TinyWorld, model_folder: Path, tmp_path: Path, raise_at: int, straight: dict[str, bytes]
) -> None:
    """Stopped by SIGTERM at some item, started again: the same files with the same bytes."""
    command = command_of(world, model_folder, tmp_path / "store", checkpoint_every_steps=1)
    opener = FakeOpener(Scripted(world))
    track = Track(raise_at=raise_at, error=TryAgain("asked to stop"))
    with pytest.raises(TryAgain):
        go(command, opener, track=track)
    kept = {
        key: data
        for key, data in contents(open_store(command.store)).items()
        if "checkpoint" not in key
    }
    go(command, opener)
    after = contents(open_store(command.store))
    assert straight == after
    assert kept == {key: after[key] for key in kept}


@pytest.fixture(scope="module")
def straight(
    world: TinyWorld, model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """Files of a run that was never stopped."""
    store = tmp_path_factory.mktemp("straight") / "store"
    go(command_of(world, model_folder, store), FakeOpener(Scripted(world)))
    return contents(open_store(str(store)))


def test_no_answer_is_asked_twice(world: TinyWorld, model_folder: Path, tmp_path: Path) -> None:
    """After a stop only shards that are not durable are asked again."""
    command = command_of(world, model_folder, tmp_path / "store")
    opener = FakeOpener(Scripted(world))
    loop_edges = edges_for(command, opener)
    loop.ingest.run(loop._stage(loop.IngestCommand, command), loop_edges)
    settings = loop._stage(GenerateCommand, command, iteration=1)
    # A shard of four questions moves the bar five times: after each answer, and when it is durable.
    track = Track(raise_at=10, error=TryAgain("asked to stop"))
    with pytest.raises(TryAgain):
        generate.run(settings, edges_for(command, opener, track=track))
    generate.run(settings, loop_edges)
    first, second = [[key for key, _, _ in engine.asked] for engine in opener.engines]
    assert (32, 16) == (len(first), len(second))
    assert not set(first) & set(second)


def test_deaf_child_is_refused(world: TinyWorld, model_folder: Path, tmp_path: Path) -> None:
    """Nothing is promoted: the base answers the benchmark, or the run fails where asked to."""
    command = command_of(
        world, model_folder, tmp_path / "store", iterations=3, fail_on_refusal=True
    )
    opener = FakeOpener(Scripted(world, deaf_adapters=True))
    with pytest.raises(PromotionRefused, match="no iteration was promoted"):
        go(command, opener)
    store = open_store(command.store)
    last = find_artifact(store, verdict_key(RUN_ID, 2))
    assert last is not None
    assert Decision.STOP is read_verdict(last).decision
    assert find_artifact(store, verdict_key(RUN_ID, 3)) is None
    assert find_artifact(store, predictions_key(RUN_ID, 0)) is None
    assert 0 == best_model(store, RUN_ID)[0].iteration
    lenient = command.model_copy(update={"fail_on_refusal": False})
    assert 6 == go(lenient, opener).manifest.counts["num_predictions"]


def test_nothing_left_to_learn_ends_the_loop(
    world: TinyWorld, model_folder: Path, tmp_path: Path
) -> None:
    """A promoted model that masters every question is submitted, not an error."""
    command = command_of(world, model_folder, tmp_path / "store", iterations=3)
    submission = go(command, FakeOpener(Scripted(world, masterly_adapters=True)))
    store = open_store(command.store)
    assert 1 == best_model(store, RUN_ID)[0].iteration
    assert find_artifact(store, examples_key(RUN_ID, 2)) is None
    assert submission.read_bytes("submission.zip")


def test_filter_settings_may_change_where_nothing_was_kept(
    world: TinyWorld, model_folder: Path, tmp_path: Path
) -> None:
    """No example at all is an error, and the same run goes on once the settings let some pass."""
    strict = FilterRecipe(top_k=2, min_valid=5)
    command = command_of(world, model_folder, tmp_path / "store", filter=strict)
    with pytest.raises(
        DataError, match=r"none of 48 candidates became an example \(wrong 24, undecided 24"
    ):
        go(command, FakeOpener(Scripted(world)))
    lenient = command.model_copy(update={"filter": FilterRecipe(top_k=2)})
    assert 6 == go(lenient, FakeOpener(Scripted(world))).manifest.counts["num_predictions"]


def test_evaluate_alone_can_fail_on_refusal(
    done: tuple[RunCommand, Artifact, Track], world: TinyWorld
) -> None:
    """Exit 4 with the reasons, also from the verdict that is there already."""
    command = done[0]
    settings = loop._stage(EvaluateCommand, command, iteration=2, fail_on_refusal=True)
    with pytest.raises(PromotionRefused, match="iteration 2: "):
        evaluate.run(settings, edges_for(command, FakeOpener(Scripted(world))))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sampling": SamplingRecipe(num_candidates=8)}, "candidates .*num_candidates: 4 -> 8"),
        ({"filter": FilterRecipe(top_k=1)}, r"examples .*filter\.top_k: 2 -> 1"),
        ({"optim": OptimSettings(seed=5)}, r"adapter .*optim\.seed: 0 -> 5"),
        ({"gate": GateRecipe(alpha=0.01)}, r"verdict .*gate\.alpha: 0\.05 -> 0\.01"),
        ({"prompt": PromptRecipe(version="v8")}, r"candidates .*prompt\.version: 'v9' -> 'v8'"),
    ],
)
def test_changed_settings_are_refused(
    done: tuple[RunCommand, Artifact, Track], world: TinyWorld, changes: Any, named: str
) -> None:
    """A finished run with other settings is neither overwritten nor passed off as the new one."""
    command = done[0].model_copy(update=changes)
    with pytest.raises(SettingsError, match=named):
        go(command, FakeOpener(Scripted(world)))


def test_other_base_model_is_refused(
    done: tuple[RunCommand, Artifact, Track], world: TinyWorld, other_model_folder: Path
) -> None:
    """Another folder under --model is noticed before anything is asked of it."""
    command = done[0].model_copy(update={"model": str(other_model_folder)})
    opener = FakeOpener(Scripted(world))
    with pytest.raises((GateError, SettingsError), match=r"base_digest|base model"):
        go(command, opener)
    assert [] == opener.engines


def test_audio_dependence_drops_what_is_solved_muted(
    world: TinyWorld, model_folder: Path, tmp_path: Path
) -> None:
    """With the setting on, what is answered right without sound as well teaches nothing."""
    scripted = Scripted(world)
    solved = next(key for key in scripted.rows if "train" in key)

    def script(request: Request, draw: int, identity: ModelIdentity) -> str:
        if request.question_id == solved and not request.clip.waveform.any():
            return think(scripted.rows[solved]["answer"], "a guess")
        return scripted(request, draw, identity)

    recipe = FilterRecipe(top_k=2, audio_dependence=True)
    command = command_of(world, model_folder, tmp_path / "store", filter=recipe)
    go(command, FakeOpener(script))
    store = open_store(command.store)
    muted = find_artifact(store, muted_key(RUN_ID, 1))
    examples = find_artifact(store, examples_key(RUN_ID, 1))
    assert muted is not None
    assert examples is not None
    assert 12 == muted.manifest.counts["num_candidates"]
    assert solved not in {example.question_id for example in examples.records(Example)}
    assert 2 == examples.manifest.metrics["drops"]["solved_muted"]


def test_votes_keep_one_agreeing_thinking(
    done: tuple[RunCommand, Artifact, Track],
) -> None:
    """Every prediction's thinking is a candidate's own, verbatim."""
    predictions = find_artifact(open_store(done[0].store), predictions_key(RUN_ID, 1))
    assert predictions is not None
    for prediction in predictions.read_records(PREDICTIONS, Prediction):
        assert "draw 0: I hear it." == prediction.thinking_prediction
        assert {prediction.answer_prediction: 1} == prediction.votes


def test_checkpoint_is_gone_after_training(done: tuple[RunCommand, Artifact, Track]) -> None:
    """The adapter is what is left of training."""
    assert [] == open_store(done[0].store).list(checkpoint_key(RUN_ID, 1))
