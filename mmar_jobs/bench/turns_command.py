"""`mmar-jobs bench turns`: a bench here and in another checkout, in turns, as two result files.

Not here: the turns (turns.py), which of the two is better (`mmar-jobs gate`).
"""

import argparse
import shlex
import sys
import uuid
from pathlib import Path

from mmar_jobs.bench.cells import parse_cell
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

    words = [word for word in chosen.bench if word != "--"]
    if not words:
        raise SettingsError("name a bench behind --, as in `bench turns ... -- filter`")
    cell = parse_cell(words[0] if len(words) == 1 else shlex.join(words))
    if chosen.turns < MIN_REPEATS:
        raise SettingsError(f"--turns {chosen.turns} cannot be judged: give {MIN_REPEATS} or more")
    chosen.output.mkdir(parents=True, exist_ok=True)
    here, there = Side(sys.executable, Path.cwd()), Side.at(chosen.baseline)
    new, baseline = measure_in_turns(
        lambda: here.measure(cell.arguments),
        lambda: there.measure(cell.arguments),
        num_turns=chosen.turns,
        label=uuid.uuid4().hex,
    )
    for name, figures in (("new", new), ("baseline", baseline)):
        write_measurements(chosen.output / f"{name}.jsonl", figures)
        sys.stdout.write(f"{chosen.output / name}.jsonl\n")
    return ExitCode.DONE
