"""`mmar-jobs bench record`: run a bench and keep its results and its log in a store, by commit.

Not here: measuring (the bench is a process of its own), where results lie (archive.py).
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mmar_jobs.bench.cells import commit_hash, parse_cell
from mmar_jobs.bench.flags import add_flag, add_store_flags, open_archive
from mmar_jobs.errors import ExitCode, TryAgain
from mmar_jobs.settings import environment_without_settings


def add_record_flags(parser: argparse.ArgumentParser) -> None:
    """What to run, and of which commit it is."""
    parser.add_argument("bench", metavar="BENCH", help='as one text: "filter --candidates 50000"')
    parser.add_argument(
        "--commit", type=commit_hash, required=True, help="what is measured (required)"
    )
    add_flag(parser)("--image", "image to record, by digest", shown="none")
    add_store_flags(parser)


def record(chosen: argparse.Namespace) -> int:
    """The bench's own exit code; its log is kept also when it failed."""
    cell = parse_cell(chosen.bench)
    archive = open_archive(chosen)
    with tempfile.TemporaryDirectory(prefix="mmar-bench-") as folder:
        log, results = Path(folder, "log"), Path(folder, "results.jsonl")
        about = ["--commit", chosen.commit, *(["--image", chosen.image] if chosen.image else [])]
        command = [sys.executable, "-m", "mmar_jobs", "bench", *cell.arguments]
        code = _run_logged([*command, *about, "--json", str(results)], log)
        is_done = code == ExitCode.DONE
        archive.keep(chosen.commit, cell, log=log, results=results if is_done else None)
    if code < 0:
        raise TryAgain(f"the bench was killed by signal {-code}: give it more memory if that was 9")
    return code


def _run_logged(command: Sequence[str], log: Path) -> int:
    """Run to the end; what is said goes to standard output and to `log`."""
    with (
        log.open("w", encoding="utf-8") as file,
        subprocess.Popen(  # noqa: S603 - this program, flags from its user
            command,
            # A cluster's settings are for its runs; a bench measures what its flags say.
            env=environment_without_settings(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as running,
    ):
        assert running.stdout is not None
        for line in running.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            file.write(line)
    return running.returncode
