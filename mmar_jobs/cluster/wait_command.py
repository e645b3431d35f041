"""The command `cluster wait`.

Not here: what a workflow's state means (wait.py).
"""

import argparse
import sys
from pathlib import Path

from mmar_jobs.arguments import not_negative
from mmar_jobs.cluster.run_job_command import add_namespace, run_id
from mmar_jobs.errors import ExitCode
from mmar_jobs.output import write_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("run_id", metavar="RUN", type=run_id, help="name of the run")
    parser.add_argument(
        "--deadline-s",
        type=not_negative,
        default=86400.0,
        help="give up after this time, exit 75 (%(default)s)",
    )
    parser.add_argument("--outputs", type=Path, help="folder for a file per output of its pods")
    add_namespace(parser)


def run(arguments: argparse.Namespace) -> int:
    """Exit with the code of the pod that ended the workflow; outputs are written all the same."""
    from mmar_jobs.cluster.api import open_cluster  # noqa: PLC0415 - --help needs no client
    from mmar_jobs.cluster.wait import wait_for_workflow  # noqa: PLC0415 - --help needs no client

    cluster = open_cluster(arguments.namespace)
    ending = wait_for_workflow(cluster, arguments.run_id, deadline_s=arguments.deadline_s)
    if arguments.outputs is not None:
        arguments.outputs.mkdir(parents=True, exist_ok=True)
        for name, value in ending.outputs.items():
            write_output(arguments.outputs / name, value)
    if ending.code is not ExitCode.DONE:
        sys.stderr.write(f"mmar-jobs cluster: {arguments.run_id} failed: {ending.sentence}\n")
    return int(ending.code)
