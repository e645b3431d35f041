"""Tests of the benches that need no GPU: each measures what its name says."""

import json
from pathlib import Path

import pytest

from mmar_jobs.bench.accuracy import measure_accuracy
from mmar_jobs.bench.child import run_measured
from mmar_jobs.bench.difference import Outcome, Rule, judge
from mmar_jobs.bench.result import Measurement, parse_measurements
from mmar_jobs.cli import run_command
from mmar_jobs.errors import DataError
from mmar_jobs.lines import open_lines
from tests.bench.figures import HERE
from tests.fakes import make_question


def measured(folder: Path, *arguments: str) -> dict[str, Measurement]:
    """The figures of one bench by name."""
    file = folder / "out.jsonl"
    assert 0 == run_command("bench", [*arguments, "--json", str(file), "--image", "i@sha256:0"])
    found = parse_measurements(open_lines(str(file)), "out")
    assert {"i@sha256:0"} == {one.environment.image for one in found}
    return {one.name: one for one in found}


def test_the_filter_is_timed_with_its_start(tmp_path: Path) -> None:
    """One value a run, and memory of a process with numpy and pydantic at least."""
    figures = measured(tmp_path, "filter", "--candidates", "800", "--repeats", "2")
    speed = figures["filter/candidates_per_s"]
    assert (2, {"candidates": 800}) == (len(speed.values), speed.case)
    assert 1 < max(speed.values) < 800 / 0.1  # Python alone takes a tenth of a second
    assert 20 < figures["filter/peak_mb"].value < 300


@pytest.mark.slow
@pytest.mark.alone
def test_the_pipeline_is_timed_from_end_to_end(tmp_path: Path) -> None:
    """The part outside the model is a part of the whole, and CPU time is at least half of it."""
    sizes = ["--train", "24", "--heldout", "12", "--benchmark", "6", "--repeats", "1"]
    figures = measured(tmp_path, "pipeline", *sizes)
    wall_s, outside_s = (figures[f"pipeline/{key}"].value for key in ("wall_s", "outside_model_s"))
    assert 0 < outside_s < wall_s
    assert figures["pipeline/cpu_s"].value > 1
    assert 200 < figures["pipeline/peak_mb"].value < 4_000


@pytest.mark.slow
@pytest.mark.alone
def test_cold_starts_are_ordered_as_their_work_is(tmp_path: Path) -> None:
    """The table of commands is quicker than a stage's settings, and those than torch."""
    figures = measured(tmp_path, "cold-start", "--repeats", "3")
    names = ("help_s", "stage_help_s", "torch_s")
    first, second, third = (figures[f"cold_start/{name}"].value for name in names)
    assert first < second < third


def test_accuracy_is_counted_item_by_item(tmp_path: Path) -> None:
    """From files: three of four right; the question without an answer is wrong."""
    rows = [
        {"id": f"q{i}", "audio_path": "a.wav", "question": "How many?", "answer": "one",
         "choices": ["one", "two"]} for i in range(4)
    ]  # fmt: skip
    (tmp_path / "meta.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    answers = [{"id": f"q{i}", "answer_prediction": "one"} for i in range(3)]
    (tmp_path / "answers.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in answers))
    meta = ["--meta", str(tmp_path / "meta.jsonl")]
    figures = measured(tmp_path, "accuracy", str(tmp_path / "answers.jsonl"), *meta)
    assert 0.75 == figures["accuracy/official"].value == figures["accuracy/strict"].value
    assert "1110" == figures["accuracy/official"].detail["right"]


def test_accuracy_of_two_models_is_paired() -> None:
    """Same questions, same order: McNemar; other choices are another question set."""
    questions = [make_question(f"q{i}") for i in range(40)]
    all_right = {question.id: question.answer for question in questions}
    half_right = {key: answer if int(key[1:]) % 2 else "two" for key, answer in all_right.items()}
    official, _ = measure_accuracy(half_right, questions, HERE)
    before, _ = measure_accuracy(all_right, questions, HERE)
    made = judge(official, before, Rule(), num_judged=1)
    assert made.outcome is Outcome.WORSE
    assert "McNemar on 40 items, 20 lost, 0 won" == made.method
    changed = [q.model_copy(update={"choices": ("one", "nine")}) for q in questions]
    other, _ = measure_accuracy(all_right, changed, HERE)
    assert "Wilson" in judge(official, other, Rule(), num_judged=1).method


def test_predictions_of_other_questions_are_refused() -> None:
    """An accuracy over the wrong file would look like a fall."""
    with pytest.raises(DataError, match="1 predictions are of no question, first zz"):
        list(measure_accuracy({"zz": "one"}, [make_question()], HERE))
    with pytest.raises(DataError, match="has no answer"):
        list(measure_accuracy({}, [make_question(answer=None)], HERE))


def test_a_command_that_fails_is_no_figure(tmp_path: Path) -> None:
    """Its last line is the reason."""
    with pytest.raises(DataError, match="ended with exit code 3: mmar-jobs filter: "):
        run_measured(["filter", "--store", str(tmp_path), "--run-id", "none"])
