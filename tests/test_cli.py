"""Tests of the command line: help, exit codes, and one line for everything that goes wrong."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmar_jobs.__main__ import COMMANDS, main, usage
from mmar_jobs.cli import _preemptible, run_command
from mmar_jobs.errors import ExitCode, TryAgain
from mmar_jobs.progress import bars, no_bar
from mmar_jobs.store import open_store
from mmar_jobs.tiny.build import TinyWorld
from tests import goldens
from tests.test_settings import COMMANDS as SETTINGS
from tests.test_settings import leaves

ROOT = Path(__file__).resolve().parent.parent


def python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `python` in a process of its own."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        **options,
    )


def test_help_takes_under_half_a_second() -> None:
    """The best of three: a newcomer's first command answers at once."""
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        done = python("-m", "mmar_jobs", "--help")
        seconds.append(time.monotonic() - start)
        assert (0, usage(), "") == (done.returncode, done.stdout, done.stderr)
    assert min(seconds) < 0.5


@pytest.mark.parametrize(
    ("arguments", "forbidden"),
    [
        (["--help"], ["torch", "pydantic", "numpy", "boto3", "rich"]),
        (["--version"], ["torch", "pydantic"]),
        (["generate", "--help"], ["torch", "transformers", "boto3", "librosa", "soundfile"]),
        (["validate", "--help"], ["torch", "transformers", "boto3", "librosa", "soundfile"]),
    ],
)
def test_help_imports_nothing_heavy(arguments: list[str], forbidden: list[str]) -> None:
    """Parsing comes before importing."""
    done = python("-X", "importtime", "-m", "mmar_jobs", *arguments)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert 0 == done.returncode
    assert not imported & set(forbidden)


def test_usage_lists_every_command() -> None:
    """Each command on a line of its own with what it is for."""
    for name, summary in COMMANDS.items():
        assert f"  {name:<10} {summary}\n" in usage()


def test_goldens_are_what_help_says() -> None:
    """A flag that comes, goes or changes is seen in review: python tests/goldens.py --write."""
    assert goldens.FLAGS.read_text(encoding="utf-8") == goldens.cli_flags()


@pytest.mark.parametrize("kind", SETTINGS)
def test_help_lists_every_setting(kind: Any) -> None:
    """Every setting of a command with its default, or that it is needed."""
    options = goldens.options_of(goldens.help_of(kind.__name__.removesuffix("Command").lower()))
    for name, field in leaves(kind):
        meaning = options[f"--{name.replace('_', '-')}"]
        assert " ".join(field.description.split()) in meaning
        assert ("(required)" if field.is_required() else "(default:") in meaning


def test_goldens_are_not_rewritten_in_ci() -> None:
    """In CI a golden is what the change must match."""
    done = python("tests/goldens.py", "--write", env=os.environ | {"CI": "true"})
    assert 2 == done.returncode
    assert "not rewritten in CI" in done.stderr


def test_version_is_the_package_s() -> None:
    """One word and a number."""
    assert python("-m", "mmar_jobs", "--version").stdout.startswith("mmar-jobs 0.")


def test_main_without_a_command_shows_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """No command, no harm."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mmar-jobs"])
        assert 0 == main()
    assert usage() == capsys.readouterr().out


Fails = Callable[..., str]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Run a command that must fail with a code and one line, which is returned."""

    def check(code: ExitCode, name: str, *arguments: str) -> str:
        assert code == run_command(name, arguments)
        said = capsys.readouterr().err
        line = said.splitlines()[-1]
        assert line.startswith(f"mmar-jobs {name}: ")
        assert "Traceback" not in said
        return line

    return check


def test_unknown_command_is_a_settings_error(fails: Fails) -> None:
    """With a guess at what was meant."""
    line = fails(ExitCode.SETTINGS, "genrate")
    assert "there is no command genrate; did you mean generate?" in line


@pytest.mark.parametrize("name", ["generate", "filter", "train", "evaluate", "infer", "submit"])
def test_stage_without_its_input_names_the_stage_before(
    fails: Fails, name: str, tmp_path: Path, model_folder: Path
) -> None:
    """Exit 3: the store is there and empty."""
    model = [] if name in ("filter", "submit") else ["--model", str(model_folder)]
    line = fails(ExitCode.DATA, name, "--store", str(tmp_path), "--run-id", "r", *model)
    assert "has no finished runs/r/questions: run the ingest stage first" in line


def test_ingest_without_questions_is_a_settings_error(fails: Fails, tmp_path: Path) -> None:
    """They are optional only because a file may give them."""
    flags = ["--store", str(tmp_path), "--run-id", "r", "--model", "m"]
    assert "--questions is needed" in fails(ExitCode.SETTINGS, "ingest", *flags)
    assert "--benchmark is needed" in fails(
        ExitCode.SETTINGS, "ingest", *flags, "--questions", "q.jsonl"
    )


def test_missing_question_file_is_a_data_error(
    fails: Fails, tmp_path: Path, world: TinyWorld
) -> None:
    """The path is in the line."""
    flags = ["--store", str(tmp_path / "store"), "--run-id", "r", "--model", "m"]
    flags += ["--questions", str(tmp_path / "none.jsonl"), "--benchmark", str(world.benchmark)]
    assert str(tmp_path / "none.jsonl") in fails(ExitCode.DATA, "ingest", *flags)


@pytest.mark.parametrize(
    ("store", "named"),
    [
        ("gopher://x", "gopher:// cannot be read or written"),
        ("s3://", "no valid bucket name"),
        ("/proc/nowhere", "/proc/nowhere"),
        (str(Path(__file__)), "is a file: choose a folder"),
    ],
)
def test_bad_store_is_a_settings_error(fails: Fails, store: str, named: str) -> None:
    """A store that cannot be, or cannot be written."""
    assert named in fails(ExitCode.SETTINGS, "submit", "--store", store, "--run-id", "r")


def test_two_runs_with_one_run_id_try_again(fails: Fails, tmp_path: Path) -> None:
    """The second is told who holds the run; exit 75 makes a scheduler wait."""
    flags = ["--store", str(tmp_path), "--run-id", "r"]
    with open_store(str(tmp_path)).lease("runs/r"):
        line = fails(ExitCode.TRY_AGAIN, "submit", *flags)
    assert f"in use by pid {os.getpid()}" in line
    assert "choose another --run-id" in line


def test_other_run_id_is_not_in_the_way(fails: Fails, tmp_path: Path) -> None:
    """Runs of one store do not wait for each other."""
    with open_store(str(tmp_path)).lease("runs/r"):
        fails(ExitCode.DATA, "submit", "--store", str(tmp_path), "--run-id", "r2")


def test_sigterm_becomes_try_again_between_items() -> None:
    """The signal is noted at once and acted on where all finished work is durable."""
    before = signal.getsignal(signal.SIGTERM)
    done: list[str] = []

    def stage() -> None:
        with _preemptible(no_bar) as track, track("label", 3) as advance:
            advance(1)
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("the item at hand")
            advance(1)
            done.append("one more")

    with pytest.raises(TryAgain, match="run the same command again"):
        stage()
    assert ["the item at hand"] == done
    assert before == signal.getsignal(signal.SIGTERM)


def test_bars_count(capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal each bar has its label and ends full."""
    from rich.console import Console

    console = Console(file=sys.stdout, force_terminal=True, width=120)
    with bars(console)("held-out, child", 4) as advance:
        advance(1)
        advance(3)
    said = capsys.readouterr().out
    assert "held-out, child" in said
    assert "4/4" in said


def meta_rows(world: TinyWorld) -> list[dict[str, Any]]:
    """The benchmark's rows."""
    return [json.loads(line) for line in world.benchmark.read_text().splitlines()]


def write_zip(path: Path, rows: list[dict[str, Any]], name: str = "result.jsonl") -> Path:
    """A submission of these rows."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, "".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def predicted(row: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A right prediction of a benchmark row."""
    known = {
        "id": row["id"],
        "thinking_prediction": "I hear it.",
        "answer_prediction": row["answer"],
    }
    return known | changes


def test_validate_accepts_a_right_submission(
    world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 0 and one line."""
    path = write_zip(tmp_path / "s.zip", [predicted(row) for row in meta_rows(world)])
    assert 0 == run_command("validate", [str(path), "--meta", str(world.benchmark)])
    assert f"{path} is a valid submission\n" == capsys.readouterr().out


def test_validate_names_every_problem(
    world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 3; each problem on a line of its own, their number in the last."""
    rows = meta_rows(world)
    wrong = [
        predicted(rows[0]),
        predicted(rows[0]),
        predicted(rows[1], answer_prediction="no choice"),
        predicted(rows[2], thinking_prediction="x" * 10_000),
        predicted(rows[3], id="stranger"),
    ]
    path = write_zip(tmp_path / "s.zip", wrong)
    assert ExitCode.DATA == run_command("validate", [str(path), "--meta", str(world.benchmark)])
    told = capsys.readouterr()
    for problem in (
        f"duplicate id '{rows[0]['id']}'",
        "'no choice', which is not one of its choices",
        "thinking_prediction of 10000 characters",
        "unknown id 'stranger'",
        f"missing id '{rows[3]['id']}'",
        f"missing id '{rows[5]['id']}'",
    ):
        assert problem in told.out
    assert f"has {len(told.out.splitlines())} problems" in told.err


def test_validate_names_all_of_many_problems(
    world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not only the first few."""
    rows = [predicted(meta_rows(world)[0], id=f"stranger-{i}") for i in range(300)]
    path = write_zip(tmp_path / "s.zip", rows)
    assert ExitCode.DATA == run_command("validate", [str(path), "--meta", str(world.benchmark)])
    assert 300 == capsys.readouterr().out.count("unknown id 'stranger-")


@pytest.mark.parametrize("kind", ["not a zip", "other file", "missing"])
def test_validate_refuses_what_is_no_submission(
    world: TinyWorld, tmp_path: Path, kind: str, fails: Fails
) -> None:
    """A text file, a zip of another file, no file at all."""
    path = tmp_path / "s.zip"
    if kind == "not a zip":
        path.write_text("{}")
    elif kind == "other file":
        write_zip(path, [], name="results/result.jsonl")
    assert str(path) in fails(ExitCode.DATA, "validate", str(path), "--meta", str(world.benchmark))


def test_validate_needs_meta(fails: Fails) -> None:
    """A flag that is missing is a settings error, as everywhere."""
    assert "--meta" in fails(ExitCode.SETTINGS, "validate", "s.zip")


def test_broken_meta_names_its_line(world: TinyWorld, tmp_path: Path, fails: Fails) -> None:
    """A score over the rows that can be read would be of another benchmark."""
    path = write_zip(tmp_path / "s.zip", [])
    meta = tmp_path / "meta.jsonl"
    lines = world.benchmark.read_text().splitlines()
    meta.write_text("\n".join([lines[0], "", "{broken", *lines[1:]]))
    line = fails(ExitCode.DATA, "validate", str(path), "--meta", str(meta))
    assert f"{meta} line 3: is not JSON" in line
    meta.write_text("")
    assert "holds no question" in fails(ExitCode.DATA, "validate", str(path), "--meta", str(meta))


@pytest.mark.parametrize("is_zip", [True, False])
def test_score_prints_json(
    world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str], is_zip: bool
) -> None:
    """From a zip or JSONL: the promised keys, as fractions of all ids in META."""
    rows = meta_rows(world)
    answers = [predicted(rows[0]), predicted(rows[1]), predicted(rows[2], answer_prediction="no")]
    path = tmp_path / "predictions"
    if is_zip:
        write_zip(path, answers)
    else:
        plain = [{key: row[key] for key in ("id", "answer_prediction")} for row in answers]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in plain))
    assert 0 == run_command("score", [str(path), "--meta", str(world.benchmark), "--json"])
    scored = json.loads(capsys.readouterr().out)
    assert (6, 3) == (scored["num_items"], scored["num_answered"])
    for name in ("official_accuracy", "strict_accuracy"):
        assert pytest.approx(2 / 6) == scored[name]
        low, high = scored[f"{name}_ci95"]
        assert 0 < low < 2 / 6 < high < 1
    assert {row["category"] for row in rows} == scored["by_category"].keys()
    assert {row["sub-category"] for row in rows} == scored["by_sub_category"].keys()
    assert 6 == sum(group["num_items"] for group in scored["by_category"].values())


def test_score_prints_a_table(
    world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --json a person reads it."""
    path = write_zip(tmp_path / "s.zip", [predicted(row) for row in meta_rows(world)])
    assert 0 == run_command("score", [str(path), "--meta", str(world.benchmark)])
    lines = capsys.readouterr().out.splitlines()
    assert "official (95 %)" in lines[0]
    assert lines[1].startswith("all ")
    assert "1.000 (" in lines[1]


def test_defect_shows_its_traceback(tmp_path: Path) -> None:
    """Only a defect does: exit 1, and nothing of it is swallowed."""
    code = (
        "import sys; from mmar_jobs import cli\n"
        "cli._handler = lambda name: (lambda arguments: 1 / 0)\n"
        "sys.exit(cli.run_command('submit', []))"
    )
    done = python("-c", code)
    assert 1 == done.returncode
    assert "ZeroDivisionError" in done.stderr
