"""The main job makes its model measurably better, whatever the seed: nothing here is hard-coded."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import mmar_jobs
from mmar_jobs.records import Grade, Question
from mmar_jobs.report.findings import Comparison, compare
from mmar_jobs.report.run_view import read_run
from mmar_jobs.stats import above_chance
from mmar_jobs.store import open_store
from mmar_jobs.tiny import tiny_model_folder
from mmar_jobs.tiny.build import build_world

PACKAGE = Path(mmar_jobs.__file__).parent
MIN_GAIN = 0.10
MAX_P_VALUE = 0.01
SEED = 1  # `make demo` shows another
ALPHA = 0.01  # of two tests one would fail by chance too often at 0.05


def run_demo(folder: Path) -> tuple[Comparison, Sequence[Question]]:
    """The demo's own settings and sizes; compares base and last promoted model.

    Also gives the held-out questions that both were asked.
    """
    world = build_world(
        folder / "world", seed=SEED, num_train=1500, num_heldout=600, num_benchmark=200
    )
    settings = {
        "config": PACKAGE / "tiny/demo.toml",
        "store": folder / "store",
        "run-id": f"seed-{SEED}",
        "model": tiny_model_folder(),
        "questions": world.train,
        "heldout": world.heldout,
        "benchmark": world.benchmark,
        "sampling.seed": SEED,
        "optim.seed": SEED,
    }
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    subprocess.run([sys.executable, "-m", "mmar_jobs", "run", *flags], check=True)
    run = read_run(open_store(str(folder / "store")), f"seed-{SEED}")
    comparison = compare(run)
    assert comparison is not None, "a finished run has a verdict"
    return comparison, run.splits["heldout"]


def above_chance_where_answered(comparison: Comparison, questions: Sequence[Question]) -> float:
    """P-value for the muted model beating chance on the questions that it answers at all.

    Without it, a model that says nothing readable when muted would pass the control for free.
    """
    grades = {
        question.id: comparison.muted_grades[question.id]
        for question in questions
        if comparison.muted_grades[question.id] in (Grade.CORRECT, Grade.WRONG)
    }
    num_choices = [len(q.choices) for q in questions if q.id in grades]
    num_correct = sum(grade is Grade.CORRECT for grade in grades.values())
    return above_chance(num_correct, num_choices)


@pytest.mark.slow
def test_the_last_promoted_model_is_better(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At least ten points over the warm start, p < 0.01, and not above chance without sound."""
    comparison, questions = run_demo(tmp_path)
    seen = comparison.verdict
    with capsys.disabled():
        print(  # noqa: T201 - the figures of README.md
            f"\nseed {SEED}: {seen.parent_accuracy:.1%} -> {seen.child_accuracy:.1%} "
            f"(iteration {comparison.after.iteration}), gain {100 * seen.gain:+.1f} points, "
            f"p = {seen.p_value:.1g}, muted {seen.muted_accuracy:.1%}, chance {seen.chance:.1%}"
        )
    assert comparison.is_promoted
    assert seen.gain >= MIN_GAIN
    assert seen.p_value < MAX_P_VALUE
    assert seen.muted_p_value is not None, "the muted control is on by default"
    assert seen.muted_p_value > ALPHA
    assert above_chance_where_answered(comparison, questions) > ALPHA
