"""`mmar-jobs bench NAME`: run one benchmark, print its figures, write them as JSON lines.

Not here: what is measured (train.py, generate.py), what a figure carries (result.py).
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mmar_jobs.arguments import Parser
from mmar_jobs.bench.result import Measurement, write_measurements
from mmar_jobs.errors import ExitCode, SettingsError

if TYPE_CHECKING:
    import torch


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
    def flag(name: str, text: str, **options: Any) -> None:
        shown = options.pop("shown", "%(default)s")
        parser.add_argument(name, help=f"{text} (default: {shown})", **options)

    flag("--shape", "model shape", choices=("30b", "tiny"), default="30b")
    flag("--num-layers", "cut the model to this many layers", type=_positive, shown="all")
    several = "real tokens of a packed row, or several as 2048,8192"
    flag("--tokens", several, type=_row_sizes, default="8192")
    flag("--example-tokens", "tokens of every packed example", type=_positive, shown="a mix")
    flag("--rank", "LoRA rank", type=_positive, default=64)
    flag("--dropout", "dropout on the LoRA input", type=float, default=0.05)
    flag("--quantization", "of the frozen base", choices=("nf4", "none"), default="nf4")
    flag("--optimizer", "optimizer", choices=("adamw8bit", "adamw"), default="adamw8bit")
    flag("--memory-gb", "device memory for a step, 10^9 bytes", type=_positive_real, default=80.0)
    flag("--steps", "steps that are timed", type=_positive, default=5)
    flag("--warmup", "steps before those", type=_count, default=2)
    flag("--seed", "of weights, rows and dropout", type=_count, default=0)
    flag("--device", "cuda, cuda:1, cpu", default="cuda")
    flag("--compare", "time the stock path too, same rows", choices=("peft",), shown="no")
    _add_report_flags(parser)


def _add_generate_flags(parser: argparse.ArgumentParser) -> None:
    def flag(name: str, text: str, **options: Any) -> None:
        parser.add_argument(name, help=f"{text} (default: %(default)s)", **options)

    parser.add_argument("--servers", required=True, help="vLLM servers, URL,URL")
    parser.add_argument("--model", required=True, help="folder of the model that they serve")
    flag("--questions", "questions, two about each clip", type=_positive, default=64)
    flag("--draws", "draws of each question", type=_positive, default=16)
    flag("--max-tokens", "longest completion", type=_positive, default=512)
    flag("--clip-s", "length of a clip, seconds", type=_positive_real, default=10.0)
    flag("--temperature", "of the draws", type=_positive_real, default=0.9)
    flag("--dtype", "of the servers", choices=("float32", "bfloat16"), default="bfloat16")
    flag("--media-dir", "folder for clips that the servers read too", default="")
    flag("--seed", "of clips and draws", type=_count, default=0)
    _add_report_flags(parser)


def _add_report_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--commit", help="commit to record (default: what git says)")
    json_help = "write JSON lines to this file, - for standard output (default: no)"
    parser.add_argument("--json", help=json_help, type=Path)


def _positive(text: str) -> int:
    return _whole(text, 1)


def _count(text: str) -> int:
    return _whole(text, 0)


def _whole(text: str, smallest: int) -> int:
    if not text.strip().isdecimal() or int(text) < smallest:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least {smallest}")
    return int(text)


def _positive_real(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return number


def _row_sizes(text: str) -> tuple[int, ...]:
    return tuple(_positive(part) for part in text.split(","))


def _train(chosen: argparse.Namespace) -> int:
    # torch takes seconds that --help must not pay.
    from mmar_jobs.bench.environment import read_environment  # noqa: PLC0415
    from mmar_jobs.bench.figures import TrainBench  # noqa: PLC0415
    from mmar_jobs.bench.train import run_train_bench  # noqa: PLC0415

    settings = TrainBench(
        shape=chosen.shape,
        num_layers=chosen.num_layers,
        tokens=chosen.tokens,
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
    device = _device(chosen.device)
    _check_writable(chosen.json)
    environment = read_environment(device, commit=chosen.commit)
    return _report(run_train_bench(settings, device, environment), chosen.json)


def _generate(chosen: argparse.Namespace) -> int:
    import torch  # noqa: PLC0415 - seconds that --help must not pay

    from mmar_jobs.bench.environment import read_environment  # noqa: PLC0415
    from mmar_jobs.bench.generate import GenerateBench, run_generate_bench  # noqa: PLC0415

    bench = GenerateBench(
        servers=chosen.servers,
        model=chosen.model,
        num_questions=chosen.questions,
        num_draws=chosen.draws,
        max_tokens=chosen.max_tokens,
        clip_s=chosen.clip_s,
        temperature=chosen.temperature,
        dtype=chosen.dtype,
        seed=chosen.seed,
        media_dir=chosen.media_dir,
    )
    _check_writable(chosen.json)
    environment = read_environment(torch.device("cpu"), commit=chosen.commit)
    return _report(run_generate_bench(bench, environment), chosen.json)


def _device(name: str) -> "torch.device":
    import torch  # noqa: PLC0415 - seconds that --help must not pay

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingsError(f"--device {name} is not known to torch") from error
    if device.type not in {"cuda", "cpu"}:
        raise SettingsError(f"--device {name}: only cuda and cpu can be measured")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(f"there is no device {name} here: try --device cpu --shape tiny")
    return device


def _check_writable(json_file: Path | None) -> None:
    """Fail before minutes of measuring, not after."""
    if json_file is not None and str(json_file) != "-":
        if json_file.is_dir():
            raise SettingsError(f"--json {json_file} is a folder: name a file")
        probe = json_file.with_name(f".{json_file.name}.part")
        probe.touch()
        probe.unlink()


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
] = {
    "train": ("the trainer's step on a real shape with random weights", _add_train_flags, _train),
    "generate": ("client and servers on synthetic clips", _add_generate_flags, _generate),
}
