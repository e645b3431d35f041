"""The command `cluster`: one word more says what is done with a Kubernetes cluster.

Not here: the work itself; each word has a module of its own, imported only when it is asked for.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final, NamedTuple

from mmar_jobs.arguments import Parser


class _Word(NamedTuple):
    """A word after `cluster`: where it is defined, and what it does in one line."""

    module: str
    summary: str


_WORDS: Final = {
    "run-job": _Word("run_job_command", "run one stage as a Job and wait for its end"),
    "run-bench": _Word("run_bench_command", "measure one bench as a Job and keep its results"),
    "scale": _Word("scale_command", "bring a vLLM server up with the right models, or down"),
    "reap": _Word("reap_command", "stop servers whose lease is over"),
    "status": _Word("status_command", "a run's stages, pods, GPU hours and cost on one screen"),
    "logs": _Word("logs_command", "what a run's stages said"),
    "submit": _Word("submit_command", "start a run as an Argo workflow, once"),
    "wait": _Word("wait_command", "wait for a run's workflow and exit with its code"),
}


def cluster(arguments: Sequence[str]) -> int:
    """Run one of the words; `mmar-jobs cluster WORD --help` lists its flags."""
    parser = Parser("mmar-jobs cluster", description="Run and watch stages on Kubernetes.")
    words = parser.add_subparsers(dest="word", required=True, metavar="WORD")
    asked = arguments[0] if arguments else ""
    for name, word in _WORDS.items():
        summary = f"{word.summary[0].upper()}{word.summary[1:]}."
        sub = words.add_parser(name, help=word.summary, description=summary)
        if name == asked:
            _module(word).add_arguments(sub)
    # What follows `--` belongs to the stage, whatever it looks like.
    own, flags = _split(arguments)
    chosen = parser.parse_args(own)
    chosen.flags = flags
    return int(_module(_WORDS[chosen.word]).run(chosen))


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    if "--" not in arguments:
        return list(arguments), []
    where = list(arguments).index("--")
    return list(arguments[:where]), list(arguments[where + 1 :])


def _module(word: _Word) -> Any:
    return import_module(f"mmar_jobs.cluster.{word.module}")
