"""Tests of run-job on a real cluster: what each fault looks like there, and what is said of it."""

from pathlib import Path
from typing import Any

import yaml

from tests.cluster.real.namespace import Namespace, arguments, shell_job

DONE = """echo '{"learned": true, "num_examples": 3}' > /dev/termination-log"""


def write(namespace: Namespace, job: dict[str, Any]) -> Path:
    """The manifest as a file."""
    path = namespace.folder / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def test_a_job_runs_and_tells_its_outcome(namespace: Namespace) -> None:
    """Its lines come out as they are, its outcome as one file a value."""
    job = write(namespace, shell_job(f"echo one; sleep 2; echo two; {DONE}"))
    outputs = namespace.folder / "outputs"
    done = namespace.run(*arguments("filter", "first", job, "--outputs", str(outputs)))
    assert (0, "one\ntwo\n") == (done.code, done.out), done.err
    assert ("true", "3") == (
        (outputs / "learned").read_text(),
        (outputs / "num_examples").read_text(),
    )
