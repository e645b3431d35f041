"""Tests of the training bench on the tiny shape: it trains, and says what it measured."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmar_jobs.bench.environment import read_environment
from mmar_jobs.bench.figures import TrainBench
from mmar_jobs.bench.result import Environment, Measurement
from mmar_jobs.bench.shape import SHAPES
from mmar_jobs.bench.train import run_train_bench
from mmar_jobs.cli import run_command
from mmar_jobs.errors import ExitCode
from tests.fakes import Fails

CPU = torch.device("cpu")
ANYWHERE = Environment("somewhere", "none", "3", {}, "unknown", "", "")
PARTS = ("forward_seconds", "backward_seconds", "optimizer_seconds")
FIGURES = ("tokens_per_s", "step_seconds", "loss", "predicted_peak_memory_gib", *PARTS)
TINY = ("--shape", "tiny", "--device", "cpu", "--rank", "4", "--optimizer", "adamw")


def measure(bench: TrainBench) -> list[Measurement]:
    """All figures of a bench on the CPU."""
    return list(run_train_bench(bench, CPU, ANYWHERE))


def named(measurements: Sequence[Measurement], name: str) -> Measurement:
    """The one figure of that name."""
    (found,) = [one for one in measurements if one.name == name]
    return found


def test_the_bench_really_trains() -> None:
    """It times the trainer's own step: the loss of random rows falls by half a nat and more."""
    bench = TrainBench(
        shape="tiny",
        tokens=(64,),
        rank=8,
        optimizer="adamw",
        num_steps=25,
        num_warmup=0,
        learning_rate=2e-2,
    )
    losses = named(measure(bench), "train/loss").values
    assert len(losses) == 25
    assert losses[-1] < losses[0] - 0.5


def test_a_policy_gradient_has_the_same_figures() -> None:
    """Its steps are timed on rows of the same sizes, and its figures name the objective."""
    small = TrainBench(
        shape="tiny", tokens=(64,), rank=4, optimizer="adamw", num_steps=2, num_warmup=1
    )
    plain, policy = measure(small), measure(replace(small, objective="grpo"))
    assert [one.name for one in plain] == [one.name for one in policy]
    assert "grpo" == named(policy, "train/tokens_per_s").case["objective"]
    assert "objective" not in named(plain, "train/tokens_per_s").case
    assert named(plain, "train/loss").values != named(policy, "train/loss").values


def test_every_row_size_has_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two row sizes and the stock path: every figure once a size, in the file as on the screen."""
    path = tmp_path / "out.json"
    flags = ("--tokens", "32,48", "--steps", "2", "--warmup", "1", "--compare", "peft")
    assert ExitCode.DONE == run_command("bench", ("train", *TINY, *flags, "--json", str(path)))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for tokens in (32, 48):
        names = [line["name"] for line in lines if line["case"]["tokens"] == tokens]
        assert len(set(names)) == len(names)
        assert {f"train/{name}" for name in FIGURES} <= set(names)
        assert {"train/peft/tokens_per_s", "train/ratio_to_peft"} <= set(names)
        shares = [
            line["value"]
            for line in lines
            if line["case"]["tokens"] == tokens and "kernel_share" in line["name"]
        ]
        assert sum(shares) == pytest.approx(1, abs=0.02)
    shown = capsys.readouterr().out
    assert shown.count("train/ratio_to_peft") == 2
    speed = next(line for line in lines if line["name"] == "train/tokens_per_s")
    assert speed["repeats"] == 2
    assert speed["value"] > 0
    assert speed["detail"]["num_trained"] == 2 * SHAPES["tiny"].factors(4)
    assert speed["environment"]["packages"]["torch"] == torch.__version__
    # The stock path knows neither NF4 nor dropout: its figures say so.
    stock = next(line for line in lines if line["name"] == "train/peft/tokens_per_s")
    assert (stock["case"]["quantization"], stock["case"]["dropout"]) == ("none", 0.0)


def test_json_goes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    """With `--json -` there are JSON lines and nothing else; the commit is the one given."""
    flags = ("--tokens", "16", "--steps", "1", "--warmup", "0", "--commit", "abc", "--json", "-")
    assert ExitCode.DONE == run_command("bench", ("train", *TINY, "--quantization", "none", *flags))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["environment"]["commit"] for line in lines} == {"abc"}


def test_the_list_names_the_benches(capsys: pytest.CaptureFixture[str]) -> None:
    """`bench --list` is one line a benchmark."""
    assert ExitCode.DONE == run_command("bench", ["--list"])
    assert capsys.readouterr().out.startswith("train ")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("train", "--shape", "31b"),
        ("train", *TINY, "--tokens", "12,x"),
        ("train", *TINY, "--tokens", "0"),
        ("train", *TINY, "--tokens", "4"),
        ("train", *TINY, "--tokens", "64", "--example-tokens", "65"),
        ("train", *TINY, "--rank", "-1"),
        ("train", *TINY, "--dropout", "1.0"),
        ("train", *TINY, "--memory-gb", "0.1"),
        ("train", *TINY, "--memory-gb", "nan"),
        ("train", *TINY, "--device", "nonsense"),
        ("train", *TINY, "--device", "meta"),
    ],
    ids=" ".join,
)
def test_wrong_flags_are_one_line(fails: Fails, arguments: tuple[str, ...]) -> None:
    """Nothing that a user can type ends in a traceback."""
    fails(ExitCode.SETTINGS, "bench", *arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu_is_one_line(fails: Fails) -> None:
    """The default is a GPU; without one it says how to go on."""
    assert "--device cpu" in fails(ExitCode.SETTINGS, "bench", "train")


def test_an_unwritable_file_fails_before_the_run(fails: Fails, tmp_path: Path) -> None:
    """A wrong path costs nobody the minutes of a measurement."""
    missing = tmp_path / "missing" / "out.json"
    fails(ExitCode.SETTINGS, "bench", "train", *TINY, "--json", str(missing))


def test_the_environment_names_this_machine() -> None:
    """Device, Python, packages, and a commit that is given or looked up."""
    found = read_environment(CPU, commit=None)
    assert found.packages["torch"] == torch.__version__
    assert found.driver == "none"
    assert found.commit == "unknown" or len(found.commit.rstrip("+")) == 40
    assert read_environment(CPU, commit="abc").commit == "abc"


@pytest.mark.slow
def test_two_processes_take_the_same_step_as_one(tmp_path: Path) -> None:
    """Of the same two rows: the same losses, figures of the first process, both rows counted."""
    losses = []
    for name, flags in (("one", ("--rows", "2")), ("two", ("--processes", "2"))):
        path = tmp_path / f"{name}.json"
        rows = ("--tokens", "64", "--example-tokens", "32", "--steps", "2", "--warmup", "1")
        command = ("bench", "train", *TINY, *rows, *flags, "--json", str(path))
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run((sys.executable, "-m", "mmar_jobs", *command), check=True, env=environment)
        lines = {line["name"]: line for line in map(json.loads, path.read_text().splitlines())}
        losses.append(lines["train/loss"]["values"])
        assert lines["train/loss"]["case"]["processes"] == len(losses)
        speed, step = lines["train/tokens_per_s"], lines["train/step_seconds"]
        assert speed["values"] == pytest.approx([128 / seconds for seconds in step["values"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--rows", "2"), "need --example-tokens that divides"),
        (("--rows", "2", "--example-tokens", "48"), "need --example-tokens that divides"),
        (("--rows", "2", "--example-tokens", "32", "--compare", "peft"), "leave --rows out"),
    ],
)
def test_rows_that_cannot_be_dealt_out_are_refused(
    capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], said: str
) -> None:
    """Before anything is built: rows that would not be full, and a comparison of other work."""
    code = run_command("bench", ("train", *TINY, "--tokens", "64", *flags))
    assert (code, said in capsys.readouterr().err) == (ExitCode.SETTINGS, True)
