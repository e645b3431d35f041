"""The command `cluster reap`.

Not here: which servers (reap.py).
"""

import argparse

from mmar_jobs import logs
from mmar_jobs.cluster.run_job_command import add_namespace
from mmar_jobs.errors import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    add_namespace(parser)


def run(arguments: argparse.Namespace) -> int:
    """Exit 0, whether any server was stopped or none had to be."""
    from mmar_jobs.cluster.api import open_cluster  # noqa: PLC0415 - --help needs no client
    from mmar_jobs.cluster.reap import reap  # noqa: PLC0415 - --help needs no client

    log = logs.configure("auto").bind(command="reap")
    stopped = reap(open_cluster(arguments.namespace), log)
    log.info("reap_finished", num_stopped=len(stopped))
    return int(ExitCode.DONE)
