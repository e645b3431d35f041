"""Tests of the command line: help, exit codes, and one line for everything that goes wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
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
from tests.fakes import Fails
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
        (["generate", "--help"], ["torch", "transformers", "boto3", "soxr", "soundfile"]),
        (["validate", "--help"], ["torch", "transformers", "boto3", "soxr", "soundfile"]),
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
        assert f"  {name:<12} {summary}\n" in usage()


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
    flags = ["--store", str(tmp_path), "--run-id", "r"]
    assert "--questions is needed" in fails(ExitCode.SETTINGS, "ingest", *flags)
    assert "--benchmark is needed" in fails(
        ExitCode.SETTINGS, "ingest", *flags, "--questions", "q.jsonl"
    )


def test_missing_question_file_is_a_data_error(
    fails: Fails, tmp_path: Path, world: TinyWorld
) -> None:
    """The path is in the line."""
    flags = ["--store", str(tmp_path / "store"), "--run-id", "r"]
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


@pytest.mark.parametrize("kind", ["world", "model"])
@pytest.mark.parametrize("folder", ["/proc/nowhere", str(Path(__file__))])
def test_tiny_needs_a_folder_that_can_be_written(fails: Fails, kind: str, folder: str) -> None:
    """Said at once, in a line with the folder."""
    line = fails(ExitCode.SETTINGS, "tiny", kind, folder)
    assert f"cannot write {folder}: " in line
    assert "choose another place" in line


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


@pytest.mark.parametrize(
    ("failing", "code", "words"),
    [
        ("bytearray(1 << 62)", ExitCode.SETTINGS, "out of memory: lower --engine.rows-per-batch"),
        ("open('/none/x')", ExitCode.SETTINGS, "/none/x: no such file or directory: correct"),
        ("open('/dev/full', 'w', 1).write('x\\n')", ExitCode.TRY_AGAIN, "disk full"),
    ],
)
def test_known_failure_is_one_line(failing: str, code: ExitCode, words: str) -> None:
    """Whatever part of a command meets it."""
    done = python(
        "-c",
        "import sys; from mmar_jobs import cli\n"
        f"cli._handler = lambda name: (lambda arguments: {failing})\n"
        "sys.exit(cli.run_command('submit', []))",
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
    )
    assert code == done.returncode, done.stderr
    assert done.stderr.startswith("mmar-jobs submit: ")
    assert words in done.stderr.splitlines()[0]
    assert "Traceback" not in done.stderr


def test_sigterm_ends_with_75_and_the_next_start_goes_on(tmp_path: Path, world: TinyWorld) -> None:
    """A clip that is a pipe holds ingest where we want it; then the signal comes."""
    # Two rows share a clip, and a pipe can be read but once.
    rows = [json.loads(line) for line in world.train.read_text().splitlines()[::2]]
    shutil.copytree(world.folder / "audio", tmp_path / "audio")
    questions = tmp_path / "train.jsonl"
    questions.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    first = tmp_path / rows[0]["audio_path"]
    sound = first.read_bytes()
    first.unlink()
    os.mkfifo(first)
    flags = ["--store", str(tmp_path / "store"), "--run-id", "r"]
    flags += ["--questions", str(questions), "--benchmark", str(world.benchmark)]
    flags += ["--data.heldout-fraction", "0.5"]
    command = [sys.executable, "-m", "mmar_jobs", "ingest", *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        with first.open("wb") as pipe:  # opens once ingest reads
            process.send_signal(signal.SIGTERM)
            pipe.write(sound)
        try:
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert ExitCode.TRY_AGAIN == process.returncode
    # On a slow machine a line on progress comes first.
    told = [line for line in said.splitlines() if not line.startswith("{")]
    assert [
        "mmar-jobs ingest: asked to stop (SIGTERM): run the same command again to go on"
    ] == told
    first.unlink()
    first.write_bytes(sound)
    done = python("-m", "mmar_jobs", "ingest", *flags)
    assert 0 == done.returncode
    event = json.loads(done.stderr.splitlines()[-1])
    assert ("job_finished", 6) == (event["event"], event["num_train"] + event["num_heldout"])


def test_stage_commands_make_a_submission(
    tmp_path: Path, world: TinyWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    """The embedded model answers the benchmark by one command a stage; validate and score agree."""
    model = ROOT / "mmar_jobs" / "tiny" / "weights"
    place = ["--store", str(tmp_path / "store"), "--run-id", "r"]
    flags = ["--questions", str(world.train)]
    flags += ["--heldout", str(world.heldout), "--benchmark", str(world.benchmark)]
    zip_path = tmp_path / "out" / "submission.zip"
    infer = ["--model", str(model), "--sampling.max-tokens", "96", "--engine.threads", "1"]
    assert 0 == run_command("ingest", [*place, *flags])
    assert 0 == run_command("infer", [*place, *infer])
    assert 0 == run_command("submit", [*place, "--output", str(zip_path)])
    assert f"{zip_path}\n" == capsys.readouterr().out
    nowhere = str(zip_path / "submission.zip")
    assert ExitCode.SETTINGS == run_command("submit", [*place, "--output", nowhere])
    assert "choose another place" in capsys.readouterr().err
    assert 0 == run_command("validate", [str(zip_path), "--meta", str(world.benchmark)])
    capsys.readouterr()
    assert 0 == run_command("score", [str(zip_path), "--meta", str(world.benchmark), "--json"])
    assert 6 == json.loads(capsys.readouterr().out)["num_answered"]


def test_run_over_a_model_that_knows_nothing_is_a_data_error(
    tmp_path: Path, world: TinyWorld, model_folder: Path, fails: Fails
) -> None:
    """Nothing to train on is never a success: exit 3, with what became of the candidates."""
    flags = ["--store", str(tmp_path), "--run-id", "r", "--model", str(model_folder)]
    flags += ["--questions", str(world.train), "--heldout", str(world.heldout)]
    flags += ["--benchmark", str(world.benchmark), "--sampling.max-tokens", "8"]
    flags += ["--sampling.num-candidates", "2", "--engine.threads", "1"]
    line = fails(ExitCode.DATA, "run", *flags)
    assert "none of 24 candidates became an example (truncated" in line
