"""`mmar-jobs gate NEW --baseline BASE`: is a change better or worse, by statistics.

Not here: the comparison (gate.py). Everything is reported before anything fails.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmar_jobs.arguments import Parser, not_negative
from mmar_jobs.errors import DataError, ExitCode
from mmar_jobs.lines import open_lines
from mmar_jobs.output import write_output

if TYPE_CHECKING:
    from mmar_jobs.bench.difference import Rule
    from mmar_jobs.bench.gate import Comparison

_DESCRIPTION = """Hold results of `bench --json` against a baseline: better, no detectable change or
worse. Exit code 4 where a figure is worse, 3 where one could not be compared."""


def gate(arguments: Sequence[str]) -> int:
    """Print a Markdown table, write what was asked for, and only then fail."""
    chosen = _parser().parse_args(arguments)
    # numpy takes a tenth of a second that --help must not pay.
    from mmar_jobs.bench.gate import compare_results  # noqa: PLC0415
    from mmar_jobs.bench.gate_text import to_json, to_junit, to_markdown  # noqa: PLC0415
    from mmar_jobs.bench.result import parse_measurements  # noqa: PLC0415

    new = parse_measurements(open_lines(chosen.new), chosen.new)
    baseline = parse_measurements(open_lines(chosen.baseline), chosen.baseline)
    made = compare_results(new, baseline, rule_of(chosen))
    sys.stdout.write(to_markdown(made))
    for path, text in ((chosen.junit, to_junit(made)), (chosen.json, to_json(made))):
        if path is not None:
            write_output(path, text)
    return conclude(made, "gate")


def conclude(made: "Comparison", command: str) -> int:
    """The exit code of a comparison that has been reported; DataError where it is incomplete."""
    from mmar_jobs.bench.gate_text import headline  # noqa: PLC0415 - numpy

    if made.worse:
        sys.stderr.write(f"mmar-jobs {command}: {headline(made)}\n")
        return ExitCode.PROMOTION_REFUSED
    if made.problems:
        raise DataError(headline(made) + f": {made.problems[0]}")
    return ExitCode.DONE


def _parser() -> argparse.ArgumentParser:
    parser = Parser("mmar-jobs gate", description=_DESCRIPTION)
    parser.add_argument("new", help="results of the change, a file or s3:// address")
    parser.add_argument("--baseline", required=True, help="results to hold them against (required)")
    add_rule_flags(parser)
    for name, text in (("--junit", "JUnit XML"), ("--json", "everything as JSON")):
        parser.add_argument(name, type=Path, help=f"write {text} to this file (default: no)")
    return parser


def add_rule_flags(parser: argparse.ArgumentParser) -> None:
    """What counts as a change."""

    def flag(name: str, text: str, kind: Callable[[str], object], default: float) -> None:
        parser.add_argument(name, type=kind, default=default, help=f"{text} (default: %(default)s)")

    flag("--alpha", "chance that anything is called worse where nothing is", _share, 0.05)
    flag("--min-change", "share by which a speed or size must differ", _share, 0.03)
    flag("--min-absolute", "and by how much of its unit", not_negative, 0.0)
    flag("--margin", "loss of accuracy that is none, if shown to be smaller", _share, 0.02)
    flag("--seed", "of the bootstrap", int, 0)


def rule_of(chosen: argparse.Namespace) -> "Rule":
    """The rule that those flags say."""
    from mmar_jobs.bench.difference import Rule  # noqa: PLC0415 - numpy

    return Rule(
        alpha=chosen.alpha,
        min_change=chosen.min_change,
        min_absolute=chosen.min_absolute,
        margin=chosen.margin,
        seed=chosen.seed,
    )


def _share(text: str) -> float:
    value = not_negative(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share: give a number below 1")
    return value
