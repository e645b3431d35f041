"""`mmar-jobs bench NAME`: run one benchmark, print its figures, write them as JSON lines.

Not here: what is measured (train.py), what a figure carries (result.py).
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from mmar_jobs.arguments import Parser
from mmar_jobs.bench.result import Measurement, write_measurements
from mmar_jobs.errors import ExitCode, SettingsError

_TOKENS: Final = "8192"


def bench(arguments: Sequence[str]) -> int:
    """Run the benchmark that is named first; `--list` names them all."""
    parser = Parser("mmar-jobs bench", description="Measure speed and memory on this machine.")
    parser.add_argument("--list", action="store_true", help="name the benchmarks and exit")
    commands = parser.add_subparsers(dest="name", metavar="NAME")
    for name, (summary, add_flags, _) in _BENCHES.items():
        add_flags(commands.add_parser(name, help=summary, description=summary))
    chosen = parser.parse_args(arguments)
    if chosen.list:
        sys.stdout.writelines(f"{name:<10} {_BENCHES[name][0]}\n" for name in _BENCHES)
        return ExitCode.DONE
    if chosen.name is None:
        parser.error(f"name a benchmark: {', '.join(_BENCHES)}")
    return _BENCHES[chosen.name][2](chosen)


def _add_train_flags(parser: argparse.ArgumentParser) -> None:
    def flag(name: str, help_text: str, **options: object) -> None:
        parser.add_argument(name, help=f"{help_text} (default: %(default)s)", **options)  # type: ignore[arg-type]

    flag("--shape", "model shape", choices=("30b", "tiny"), default="30b")
    flag("--num-layers", "cut the model to this many layers; null: all", type=_positive)
    flag("--tokens", "real tokens of a packed row; several as 2048,8192", default=_TOKENS)
    flag("--example-tokens", "tokens of every packed example; null: a mix", type=_positive)
    flag("--rank", "LoRA rank", type=_positive, default=64)
    flag("--dropout", "dropout on the LoRA input", type=float, default=0.05)
    flag("--quantization", "of the frozen base", choices=("nf4", "none"), default="nf4")
    flag("--optimizer", "optimizer", choices=("adamw8bit", "adamw"), default="adamw8bit")
    flag("--memory-gb", "device memory that a step may use, 10^9 bytes", type=float, default=80.0)
    flag("--steps", "steps that are timed", type=_positive, default=5)
    flag("--warmup", "steps before those", type=_count, default=2)
    flag("--seed", "of weights, rows and dropout", type=_count, default=0)
    flag("--device", "torch device", default="cuda")
    flag("--compare", "also time the stock path on the same rows", choices=("peft",))
    flag("--commit", "commit to record; null: ask git")
    flag("--json", "write JSON lines to this file, - for standard output; null: a table", type=Path)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def _train(chosen: argparse.Namespace) -> int:
    import torch  # noqa: PLC0415 - seconds that --help must not pay

    from mmar_jobs.bench.environment import read_environment  # noqa: PLC0415 - the same
    from mmar_jobs.bench.train import TrainBench, run_train_bench  # noqa: PLC0415 - the same

    settings = TrainBench(
        shape=chosen.shape,
        num_layers=chosen.num_layers,
        tokens=_row_sizes(chosen.tokens),
        example_tokens=chosen.example_tokens,
        rank=chosen.rank,
        dropout=chosen.dropout,
        quantization=chosen.quantization,
        optimizer=chosen.optimizer,
        memory_gb=chosen.memory_gb,
        num_steps=chosen.steps,
        num_warmup=chosen.warmup,
        seed=chosen.seed,
        compare=chosen.compare,
    )
    try:
        device = torch.device(chosen.device)
    except RuntimeError as error:
        raise SettingsError(f"device {chosen.device} is not known to torch") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SettingsError("there is no CUDA device here: use --device cpu --shape tiny")
    environment = read_environment(device, commit=chosen.commit)
    return _report(run_train_bench(settings, device, environment), chosen.json)


def _row_sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(_positive(part) for part in text.split(","))
    except ValueError as error:
        raise SettingsError(f"--tokens {text}: give whole numbers, as in 4096,8192") from error


def _report(measurements: Iterable[Measurement], json_file: Path | None) -> int:
    """Print figures as they come; the file is complete after each of them."""
    done: list[Measurement] = []
    to_stdout = json_file is not None and str(json_file) == "-"
    for measurement in measurements:
        if not to_stdout and (not done or done[-1].case != measurement.case):
            sys.stdout.write(f"{measurement.render_heading()}\n")
        done.append(measurement)
        line = measurement.render_json() if to_stdout else measurement.render_text()
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
        if json_file is not None and not to_stdout:
            write_measurements(json_file, done)
    return ExitCode.DONE


_BENCHES: Final[
    dict[
        str,
        tuple[
            str,
            Callable[[argparse.ArgumentParser], None],
            Callable[[argparse.Namespace], int],
        ],
    ]
] = {"train": ("the trainer's step on a real shape with random weights", _add_train_flags, _train)}
