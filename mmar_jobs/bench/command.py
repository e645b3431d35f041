"""`mmar-jobs bench NAME`: run one benchmark, print its figures, write them as JSON lines.

Not here: what is measured (train.py), the benches that need no GPU (cpu_command.py).
"""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from mmar_jobs.arguments import Parser
from mmar_jobs.bench.baseline_command import add_baseline_flags, move_baseline
from mmar_jobs.bench.cpu_command import CPU_BENCHES
from mmar_jobs.bench.flags import (
    add_flag,
    add_result_flags,
    count,
    positive,
    positive_real,
    row_sizes,
)
from mmar_jobs.bench.history_command import add_history_flags, show_history
from mmar_jobs.bench.judge_command import add_judge_flags, judge
from mmar_jobs.bench.record_command import add_record_flags, record
from mmar_jobs.bench.reporting import check_writable, report
from mmar_jobs.bench.turns_command import add_turns_flags, measure_turns
from mmar_jobs.errors import ExitCode, SettingsError

if TYPE_CHECKING:
    import torch

    from mmar_jobs.settings import Process


def bench(arguments: Sequence[str]) -> int:
    """Run the benchmark that is named first; `--list` names them all."""
    parser = bench_parser()
    chosen = parser.parse_args(arguments)
    if chosen.list:
        sys.stdout.writelines(f"{name:<10} {_BENCHES[name][0]}\n" for name in _BENCHES)
        return ExitCode.DONE
    if chosen.name is None:
        parser.error(f"name a benchmark: {', '.join(_BENCHES)}")
    chosen.given = arguments
    return _BENCHES[chosen.name][2](chosen)


def bench_parser() -> argparse.ArgumentParser:
    """The flags of every benchmark."""
    parser = Parser("mmar-jobs bench", description="Measure speed and memory on this machine.")
    parser.add_argument("--list", action="store_true", help="name the benchmarks and exit")
    commands = parser.add_subparsers(dest="name", metavar="NAME")
    for name, (summary, add_flags, _) in _BENCHES.items():
        add_flags(commands.add_parser(name, help=summary, description=summary))
    return parser


def _add_train_flags(parser: argparse.ArgumentParser) -> None:
    flag = add_flag(parser)
    flag("--shape", "model shape", choices=("30b", "tiny"), default="30b")
    flag("--num-layers", "cut the model to this many layers", type=positive, shown="all")
    several = "real tokens of a packed row, or several as 2048,8192"
    flag("--tokens", several, type=row_sizes, default="8192")
    flag("--rows", "packed rows a step, dealt out to processes", type=positive, shown="processes")
    flag("--processes", "one GPU each, of this machine", type=positive, default=1)
    flag("--example-tokens", "tokens of every packed example", type=positive, shown="a mix")
    flag("--rank", "LoRA rank", type=positive, default=64)
    flag("--dropout", "dropout on the LoRA input", type=float, default=0.05)
    flag("--quantization", "of the frozen base", choices=("nf4", "none"), default="nf4")
    flag("--optimizer", "optimizer", choices=("adamw8bit", "adamw"), default="adamw8bit")
    flag("--memory-gb", "device memory for a step, 10^9 bytes", type=positive_real, default=80.0)
    flag("--steps", "steps that are timed", type=positive, default=5)
    flag("--warmup", "steps before those", type=count, default=2)
    flag("--seed", "of weights, rows and dropout", type=count, default=0)
    flag("--device", "cuda, cuda:1, cpu", default="cuda")
    flag("--objective", "what a step minimises", choices=("rest", "grpo"), default="rest")
    flag("--compare", "time the stock path too, same rows", choices=("peft",), shown="no")
    add_result_flags(parser)


def _train(chosen: argparse.Namespace) -> int:
    # torch takes seconds that --help must not pay.
    from mmar_jobs.bench.environment import read_environment  # noqa: PLC0415
    from mmar_jobs.bench.figures import TrainBench  # noqa: PLC0415
    from mmar_jobs.bench.train import run_train_bench  # noqa: PLC0415
    from mmar_jobs.launch import launch  # noqa: PLC0415
    from mmar_jobs.qlora.distributed import join_workers  # noqa: PLC0415
    from mmar_jobs.settings import launched  # noqa: PLC0415

    process = launched()
    if process.num == 1 and chosen.processes > 1:
        return launch(["bench", *chosen.given], chosen.processes)
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
        rows=chosen.rows or process.num,
        processes=process.num,
        objective=chosen.objective,
    )
    device = _device(chosen.device, process)
    check_writable(chosen.json)
    environment = read_environment(device, commit=chosen.commit, image=chosen.image)
    with join_workers(process.rank, process.num, device) as workers:
        measurements = run_train_bench(settings, device, environment, workers)
        if workers.is_first:
            return report(measurements, chosen.json)
        for _ in measurements:  # measured beside the first, which speaks for all
            pass
    return ExitCode.DONE


def _device(name: str, process: "Process") -> "torch.device":
    import torch  # noqa: PLC0415 - seconds that --help must not pay

    from mmar_jobs.qlora.device import take_gpu  # noqa: PLC0415

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingsError(f"--device {name} is not known to torch") from error
    if device.type not in {"cuda", "cpu"}:
        raise SettingsError(f"--device {name}: only cuda and cpu can be measured")
    if device.type == "cpu":
        return device
    index = process.local_rank if process.num > 1 or device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise SettingsError(f"there is no device cuda:{index} here: try --device cpu --shape tiny")
    return take_gpu(index)


_BENCHES: Final = {
    "train": ("the trainer's step on a real shape with random weights", _add_train_flags, _train),
    **CPU_BENCHES,
    "turns": ("a bench here and in another checkout, in turns", add_turns_flags, measure_turns),
    "record": ("a bench, its results and log kept by commit", add_record_flags, record),
    "judge": ("a commit's kept results against the baseline", add_judge_flags, judge),
    "baseline": ("make a commit of main the baseline", add_baseline_flags, move_baseline),
    "history": (
        "stored results as a page: which commit changed what",
        add_history_flags,
        show_history,
    ),
}
