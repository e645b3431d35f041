"""Tests of the command line of `cluster`: help, wrong flags, and a cluster that is not there."""

import subprocess
import sys
from pathlib import Path

import pytest

from mmar_jobs.errors import ExitCode
from tests.fakes import Fails

WORDS = ("run-job", "run-bench", "scale", "reap", "status", "logs", "submit", "wait")
NOWHERE = ("--run-id", "r", "--jobs", str(Path(__file__).parent.parent.parent / "k8s/jobs"))


@pytest.mark.parametrize("word", WORDS)
def test_help_imports_no_client(word: str) -> None:
    """The client of Kubernetes takes most of a second."""
    command = [sys.executable, "-X", "importtime", "-m", "mmar_jobs", "cluster", word, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert (0, True) == (done.returncode, "--namespace" in done.stdout)
    assert not imported & {"kubernetes", "torch", "boto3", "aiohttp"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run-job", "walk", "--run-id", "r"), "invalid choice: 'walk'"),
        (("run-job", "filter", "--run-id", "R!"), "no DNS label"),
        (("run-job", "filter", "--run-id", "r", "--jobs", "/nowhere"), "/nowhere"),
        (("run-job", "filter", *NOWHERE), "set KUBECONFIG"),
        (("run-bench", "filter", "--commit", "main"), "main is no commit of 40 digits"),
        (("scale", "vllm", "--replicas=1", "--models=uncle"), "'uncle' is none of base, parent"),
        (("submit", "r", "-p", "iterations"), "'iterations' is not NAME=VALUE"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: tuple[str, ...],
    words: str,
    fails: Fails,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Exit 2."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert words in fails(ExitCode.SETTINGS, "cluster", *arguments)
