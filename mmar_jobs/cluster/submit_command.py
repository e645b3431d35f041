"""The command `cluster submit`.

Not here: the workflow and its refusal (submit.py).
"""

import argparse
import sys
from pathlib import Path

from mmar_jobs.cluster.run_job_command import add_namespace, run_id
from mmar_jobs.errors import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("run_id", metavar="RUN", type=run_id, help="name of the run")
    parser.add_argument(
        "--workflow",
        type=Path,
        default=Path("argo/rest-workflow.yaml"),
        help="file with the Workflow (%(default)s)",
    )
    parser.add_argument(
        "-p",
        dest="parameters",
        metavar="NAME=VALUE",
        action="append",
        type=_pair,
        default=[],
        help="a parameter of the workflow; may be repeated",
    )
    add_namespace(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the workflow's name."""
    from mmar_jobs.cluster.api import open_cluster  # noqa: PLC0415 - --help needs no client
    from mmar_jobs.cluster.submit import (  # noqa: PLC0415 - --help needs no client
        read_workflow,
        submit,
        workflow_of,
    )

    given = dict(arguments.parameters) | {"run-id": arguments.run_id}
    workflow = workflow_of(read_workflow(arguments.workflow), arguments.run_id, given)
    sys.stdout.write(f"{submit(open_cluster(arguments.namespace), workflow)}\n")
    return int(ExitCode.DONE)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value
