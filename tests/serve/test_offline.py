"""vLLM in the process of the command: the same answers as from servers, and the same care.

Each command runs in the environment that has vLLM, as it would in the image `serve`.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mmar_jobs.artifact import Artifact, find_artifact
from mmar_jobs.errors import ExitCode
from mmar_jobs.layout import candidates_key, predictions_key
from mmar_jobs.records import Candidate
from mmar_jobs.store import open_store
from mmar_jobs.tiny.build import TinyWorld
from tests.engine.loopback import wait_until
from tests.serve.job import Job, check_complete
from tests.serve.vllm import ON_CPU, cpu_environment

_OPTIONS = " ".join((*ON_CPU, "--max-model-len", "2048", "--max-num-seqs", "64"))
_READY_S = 200

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(environment: Path) -> Iterator[Start]:
    """Starts commands of a job with vLLM in their process; none outlives the test."""
    begun: list[subprocess.Popen[str]] = []

    def begin(job: Job, name: str, *more: str, options: str = _OPTIONS) -> subprocess.Popen[str]:
        command = [str(environment / "bin/mmar-jobs"), name, *job.flags(), *more]
        offline = ["--engine.backend", "vllm", f"--engine.vllm-args={options}"]
        begun.append(
            subprocess.Popen(
                [*command, *offline],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=cpu_environment(),
                start_new_session=True,
            )
        )
        return begun[-1]

    yield begin
    for process in begun:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and standard error of a command that may take as long as vLLM's start and more."""
    _, said = process.communicate(timeout=2 * _READY_S)
    return process.returncode, said


def told(said: str) -> str:
    """The one line that is the command's own."""
    [line] = [line for line in said.splitlines() if line.startswith("mmar-jobs ")]
    return line


def found(job: Job, key: str) -> Artifact:
    """A finished artifact of the job."""
    artifact = find_artifact(open_store(str(job.store)), key)
    assert artifact is not None
    return artifact


def candidates(artifact: Artifact) -> list[Candidate]:
    """All of its answers."""
    names = [s.name for s in artifact.manifest.shards if s.name.startswith("part-")]
    return [one for name in names for one in artifact.read_records(name, Candidate)]


def test_greedy_answers_are_those_of_a_server(
    start: Start, ingested: Job, undisturbed: list[Candidate], tmp_path: Path
) -> None:
    """Token for token, heard in full: the benchmark by vLLM in the Job itself."""
    job = ingested.copy(tmp_path)
    code, said = end(start(job, "infer"))
    assert ExitCode.DONE == code, said[-3000:]
    assert undisturbed == candidates(found(job, predictions_key("r", 0)))


def test_vllm_killed_in_the_middle_loses_nothing(
    start: Start, ingested: Job, world: TinyWorld, tmp_path: Path
) -> None:
    """Its core dies: exit 75 with a line; the same command asks only for what is missing."""
    job = ingested.copy(tmp_path)
    process = start(job, "generate")
    part = job.store / candidates_key("r", 1)
    wait_until(lambda: any(part.glob("part-*")), timeout_s=_READY_S)
    [core] = cores_of(process.pid)
    os.kill(core, signal.SIGKILL)
    code, said = end(process)
    assert ExitCode.TRY_AGAIN == code, said[-3000:]
    # Python's own resource tracker has the last word, on what the killed process left.
    assert "run the same command again" in told(said)
    durable = {path: path.stat().st_mtime_ns for path in part.glob("part-*")}
    code, said = end(start(job, "generate"))
    assert ExitCode.DONE == code, said[-3000:]
    assert durable == {path: path.stat().st_mtime_ns for path in durable}
    check_complete(candidates(found(job, candidates_key("r", 1))), world)


def test_parent_and_child_are_compared_in_one_process(
    start: Start, trained: Job, tmp_path: Path
) -> None:
    """Base and adapter are merged, each model is proven by its canary, one after the other."""
    job = trained.copy(tmp_path)
    process = start(job, "evaluate", "--engine.merged-dir", str(tmp_path / "merged"))
    seen: list[set[int]] = []
    while process.poll() is None and len(seen) < 40 * _READY_S:
        seen.append(cores_of(process.pid))
        time.sleep(0.05)
    code, said = end(process)
    assert ExitCode.DONE == code, said[-3000:]
    assert 1 == len(list((tmp_path / "merged").iterdir()))
    # Each would take all of a GPU's memory.
    assert 1 == max(map(len, seen))
    assert 2 == len(set().union(*seen))


def test_options_that_vllm_refuses_are_one_line(
    start: Start, ingested: Job, tmp_path: Path
) -> None:
    """Exit 2, and what to change."""
    code, said = end(start(ingested.copy(tmp_path), "infer", options="--no-such-option"))
    assert ExitCode.SETTINGS == code
    assert "--engine.vllm-args" in told(said)


def cores_of(pid: int) -> set[int]:
    """The children of a command that hold a model; others compute nothing."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        names = {int(child): Path(f"/proc/{child}/cmdline").read_text() for child in children}
    except OSError:
        return set()
    return {child for child, name in names.items() if name.startswith("VLLM::EngineCore")}
