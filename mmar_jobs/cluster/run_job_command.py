"""The command `cluster run-job`.

Not here: waiting for the Job (run_job.py).
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter, ValidationError

from mmar_jobs import logs
from mmar_jobs.arguments import not_negative, whole_number
from mmar_jobs.cluster.jobs import RUN_LABEL, STAGE_LABEL, STAGES, StageWork, Work, job_of
from mmar_jobs.cluster.manifests import find_template
from mmar_jobs.cluster.stage_lines import StageLines
from mmar_jobs.errors import ExitCode
from mmar_jobs.output import write_output
from mmar_jobs.settings import RunId, argo_progress_file
from mmar_jobs.sigterm import noted_sigterm

if TYPE_CHECKING:
    from mmar_jobs.cluster.diagnosis import Ending

JOBS: Final = Path("/etc/mmar-jobs/jobs")  # where the chart mounts them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command; what follows `--` goes to the stage."""
    parser.add_argument("stage", choices=STAGES, help="the stage to run")
    parser.add_argument("--run-id", required=True, type=run_id, help="name of the run")
    parser.add_argument(
        "--iteration", type=whole_number(1), default=1, help="turn of the loop, from 1"
    )
    parser.add_argument("--outputs", type=Path, help="folder for a file per value of the outcome")
    add_job_flags(parser)


def add_job_flags(parser: argparse.ArgumentParser) -> None:
    """Where the Job's manifest is, and how long it may take."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--jobs", type=Path, default=JOBS, help="folder with the Jobs' manifests (%(default)s)"
    )
    source.add_argument("--job", type=Path, help="file with the Job's manifest, instead")
    parser.add_argument("--image", help="image of the Job's container, instead of the manifest's")
    parser.add_argument(
        "--deadline-s", type=not_negative, help="delete the Job after this time, exit 75"
    )
    parser.add_argument(
        "--patience-s",
        type=not_negative,
        default=300.0,
        help="how long a missing image, Secret or quota may take to be put right (%(default)s)",
    )
    add_namespace(parser)


def add_namespace(parser: argparse.ArgumentParser) -> None:
    """The flag that all words have."""
    parser.add_argument("--namespace", help="instead of the kubeconfig's, or the pod's own")


def run(arguments: argparse.Namespace) -> int:
    """Exit with the stage's own code."""
    work = StageWork(arguments.stage, arguments.run_id, arguments.iteration)
    ending = run_to_end(arguments, work, needs_outcome=arguments.outputs is not None)
    if arguments.outputs is not None and ending.code is ExitCode.DONE:
        _write_outputs(arguments.outputs, ending.outcome or {})
    return int(ending.code)


def run_to_end(arguments: argparse.Namespace, work: Work, *, needs_outcome: bool) -> "Ending":
    """Make or adopt the work's Job out of the manifest labelled with its stage, and wait."""
    from mmar_jobs.cluster.api import open_cluster  # noqa: PLC0415 - --help needs no client
    from mmar_jobs.cluster.run_job import JobRun, Patience  # noqa: PLC0415 - --help needs no client

    labels = work.labels
    template = find_template(arguments.job or arguments.jobs, labels[STAGE_LABEL])
    manifest = job_of(template, work, image=arguments.image, flags=arguments.flags)
    log = logs.configure("auto").bind(run_id=labels[RUN_LABEL], stage=labels[STAGE_LABEL])
    with noted_sigterm() as stopped:
        ending = JobRun(
            open_cluster(arguments.namespace),
            manifest,
            Patience(arguments.deadline_s, arguments.patience_s),
            StageLines(argo_progress_file()).write,
            log,
            stopped,
            needs_outcome=needs_outcome,
        ).run()
    log.info("job_ended", job=work.name, exit_code=int(ending.code), reason=ending.sentence)
    return ending


def run_id(text: str) -> str:
    """A type of argument: a run's name."""
    try:
        return str(TypeAdapter(RunId).validate_python(text))
    except ValidationError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no DNS label of at most 40 characters (a-z, 0-9, -)"
        ) from None


def _write_outputs(folder: Path, outcome: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in outcome.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        write_output(folder / name, text)
