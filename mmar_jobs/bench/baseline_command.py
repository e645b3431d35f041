"""`mmar-jobs bench baseline`: later results are held against those of this commit; for main only.

The refusal here is a guard against mistakes. Against intent the store guards: only main's identity
may write below benchmarks/baseline (docs/benchmarks.md). Not here: the move itself (archive.py).
"""

import argparse
import sys
from typing import Final

from mmar_jobs.bench.cells import commit_hash
from mmar_jobs.bench.flags import add_store_flags, open_archive
from mmar_jobs.errors import ExitCode, SettingsError

_MAIN: Final = "refs/heads/main"


def add_baseline_flags(parser: argparse.ArgumentParser) -> None:
    """Which commit, and where it comes from."""
    parser.add_argument(
        "--commit", type=commit_hash, required=True, help="the new baseline (required)"
    )
    parser.add_argument("--ref", required=True, help=f"whose it is: {_MAIN} (required)")
    add_store_flags(parser)


def move_baseline(chosen: argparse.Namespace) -> int:
    """Print the number of the move."""
    if chosen.ref != _MAIN:
        raise SettingsError(f"--ref {chosen.ref}: only {_MAIN} moves the baseline; merge it first")
    moved = open_archive(chosen).move_baseline(chosen.commit)
    num = sum(commit == chosen.commit for commit in moved.commits.values())
    sys.stdout.write(f"baseline {moved.number}: {num} benches of {chosen.commit}\n")
    return ExitCode.DONE
