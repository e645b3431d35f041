"""`mmar-jobs bench turns`: a bench here and in another checkout, in turns, as two result files.

Not here: the turns (turns.py), which of the two is better (`mmar-jobs gate`).
"""

import argparse
import sys
import uuid
from pathlib import Path

from mmar_jobs.bench.flags import add_flag, positive
from mmar_jobs.bench.result import write_measurements
from mmar_jobs.errors import ExitCode, SettingsError


def add_turns_flags(parser: argparse.ArgumentParser) -> None:
    """What to hold against what, and how often."""
    flag = add_flag(parser)
    parser.add_argument(
        "--baseline",
        type=Path,
        required=True,
        help="a checkout, or the Python of another environment (required)",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for both files (required)"
    )
    flag("--turns", "how often each side is measured", type=positive, default=10)
    parser.add_argument("bench", nargs=argparse.REMAINDER, metavar="-- NAME ...")


def measure_turns(chosen: argparse.Namespace) -> int:
    """Write new.jsonl and baseline.jsonl; nothing is written unless every turn succeeded."""
    # numpy takes a tenth of a second that --help must not pay.
    from mmar_jobs.bench.difference import MIN_REPEATS  # noqa: PLC0415
    from mmar_jobs.bench.turns import Side, measure_in_turns  # noqa: PLC0415

    arguments = [part for part in chosen.bench if part != "--"]
    if not arguments:
        raise SettingsError("name a bench behind --, as in `bench turns ... -- filter`")
    if "--json" in arguments:
        raise SettingsError("leave out --json: both files go to --output")
    if chosen.turns < MIN_REPEATS:
        raise SettingsError(f"--turns {chosen.turns} cannot be judged: give {MIN_REPEATS} or more")
    chosen.output.mkdir(parents=True, exist_ok=True)
    here, there = Side(sys.executable, Path.cwd()), Side.at(chosen.baseline)
    new, baseline = measure_in_turns(
        lambda: here.measure(arguments),
        lambda: there.measure(arguments),
        num_turns=chosen.turns,
        label=uuid.uuid4().hex,
    )
    for name, figures in (("new", new), ("baseline", baseline)):
        write_measurements(chosen.output / f"{name}.jsonl", figures)
        sys.stdout.write(f"{chosen.output / name}.jsonl\n")
    return ExitCode.DONE
