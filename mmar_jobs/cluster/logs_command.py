"""The command `cluster logs`: what a run's stages said, in the order in which their pods began.

Not here: reading a log across lost connections (pod_logs.py).
"""

import argparse
import sys

from mmar_jobs.arguments import whole_number
from mmar_jobs.cluster.jobs import ITERATION_LABEL, RUN_LABEL, STAGE_LABEL, STAGES
from mmar_jobs.cluster.run_job_command import add_namespace, run_id
from mmar_jobs.errors import DataError, ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("run_id", metavar="RUN", type=run_id, help="name of the run")
    parser.add_argument("stage", nargs="?", choices=STAGES, help="of this stage only")
    parser.add_argument("--iteration", type=whole_number(1), help="of this iteration only")
    parser.add_argument("--follow", action="store_true", help="go on until the last pod has ended")
    add_namespace(parser)


def run(arguments: argparse.Namespace) -> int:
    """Each line after its pod's name; 3 where the run has no pod."""
    from mmar_jobs.cluster.api import open_cluster  # noqa: PLC0415 - --help needs no client
    from mmar_jobs.cluster.pod_logs import has_log, read_log  # noqa: PLC0415 - --help needs no client
    from mmar_jobs.cluster.run_job import by_age  # noqa: PLC0415 - --help needs no client

    cluster = open_cluster(arguments.namespace)
    wanted = {
        RUN_LABEL: arguments.run_id,
        STAGE_LABEL: arguments.stage,
        ITERATION_LABEL: arguments.iteration,
    }
    labels = ",".join(f"{name}={value}" for name, value in wanted.items() if value is not None)
    pods = [pod for pod in by_age(cluster.list("Pod", labels=labels)) if has_log(pod)]
    if not pods:
        raise DataError(f"no pod with {labels} has said anything; see mmar-jobs cluster status")
    for pod in pods:
        name = pod["metadata"]["name"]
        for line in read_log(cluster, name, follow=arguments.follow):
            sys.stdout.write(f"{name} {line}\n")
    return int(ExitCode.DONE)
