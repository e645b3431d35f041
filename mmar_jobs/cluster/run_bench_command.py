"""The command `cluster run-bench`: one bench as a Job, its results kept by commit.

Not here: waiting for the Job (run_job.py), measuring and keeping (bench/record_command.py).
"""

import argparse

from mmar_jobs.bench.cells import commit_hash, parse_cell
from mmar_jobs.cluster.bench_work import BenchWork
from mmar_jobs.cluster.run_job_command import add_job_flags, run_id, run_to_end


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command; what follows `--` goes to `bench record`."""
    parser.add_argument("bench", metavar="BENCH", help='as one text: "filter --candidates 50000"')
    parser.add_argument("--commit", type=commit_hash, required=True, help="that the image is of")
    parser.add_argument(
        "--run-id", type=run_id, help="begins its Job's name (bench-<12 of the commit>)"
    )
    parser.add_argument(
        "--on", choices=("cpu", "gpu"), default="cpu", help="kind of node (%(default)s)"
    )
    add_job_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Exit with the bench's own code."""
    work = BenchWork(
        parse_cell(arguments.bench),
        arguments.run_id or f"bench-{arguments.commit[:12]}",
        arguments.commit,
        arguments.on,
    )
    if arguments.image is not None:
        arguments.flags = [*arguments.flags, "--image", arguments.image]
    return int(run_to_end(arguments, work, needs_outcome=False).code)
