"""`mmar-jobs gate NEW --baseline BASE`: is a change better or worse, by statistics.

Not here: the comparison (gate.py). Everything is reported before anything fails.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mmar_jobs.arguments import Parser, not_negative
from mmar_jobs.errors import DataError, ExitCode
from mmar_jobs.lines import open_lines
from mmar_jobs.output import write_output

_DESCRIPTION = """Hold results of `bench --json` against a baseline: better, no detectable change or
worse. Exit code 4 where a figure is worse, 3 where one could not be compared."""


def gate(arguments: Sequence[str]) -> int:
    """Print a Markdown table, write what was asked for, and only then fail."""
    chosen = _parser().parse_args(arguments)
    # numpy takes a tenth of a second that --help must not pay.
    from mmar_jobs.bench.difference import Rule  # noqa: PLC0415
    from mmar_jobs.bench.gate import compare_results  # noqa: PLC0415
    from mmar_jobs.bench.gate_text import headline, to_json, to_junit, to_markdown  # noqa: PLC0415
    from mmar_jobs.bench.result import parse_measurements  # noqa: PLC0415

    rule = Rule(
        alpha=chosen.alpha,
        min_change=chosen.min_change,
        min_absolute=chosen.min_absolute,
        margin=chosen.margin,
        seed=chosen.seed,
    )
    new = parse_measurements(open_lines(chosen.new), chosen.new)
    baseline = parse_measurements(open_lines(chosen.baseline), chosen.baseline)
    made = compare_results(new, baseline, rule)
    sys.stdout.write(to_markdown(made))
    for path, text in ((chosen.junit, to_junit(made)), (chosen.json, to_json(made))):
        if path is not None:
            write_output(path, text)
    if made.worse:
        sys.stderr.write(f"mmar-jobs gate: {headline(made)}\n")
        return ExitCode.PROMOTION_REFUSED
    if made.problems:
        raise DataError(headline(made) + f": {made.problems[0]}")
    return ExitCode.DONE


def _parser() -> argparse.ArgumentParser:
    parser = Parser("mmar-jobs gate", description=_DESCRIPTION)
    parser.add_argument("new", help="results of the change, a file or s3:// address")
    parser.add_argument("--baseline", required=True, help="results to hold them against (required)")

    def flag(
        name: str, text: str, kind: Callable[[str], object], default: float | None = None
    ) -> None:
        shown = "no" if default is None else "%(default)s"
        parser.add_argument(name, type=kind, default=default, help=f"{text} (default: {shown})")

    flag("--alpha", "chance that anything is called worse where nothing is", _share, 0.05)
    flag("--min-change", "share by which a speed or size must differ", _share, 0.03)
    flag("--min-absolute", "and by how much of its unit", not_negative, 0.0)
    flag("--margin", "loss of accuracy that is none, if shown to be smaller", _share, 0.02)
    flag("--seed", "of the bootstrap", int, 0)
    flag("--junit", "write JUnit XML to this file", Path)
    flag("--json", "write everything as JSON to this file", Path)
    return parser


def _share(text: str) -> float:
    value = not_negative(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share: give a number below 1")
    return value
