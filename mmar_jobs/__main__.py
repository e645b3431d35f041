"""Entry point: prints the table of commands without importing anything heavy, else hands to cli.

Not here: what the commands do.
"""

import os
import signal
import sys
from types import FrameType
from typing import Final, NoReturn

_TRY_AGAIN: Final = 75
COMMANDS: Final = {
    "run": "the whole loop on this machine, from questions to submission.zip and report.html",
    "ingest": "check questions and clips, split them by audio, guard the benchmark",
    "generate": "answer each training question K times with the current model",
    "filter": "keep the candidates that are provably right as training examples",
    "train": "train a QLoRA adapter on the examples",
    "evaluate": "compare parent and child on held-out questions, record the verdict",
    "infer": "answer the benchmark with the best model",
    "submit": "pack the answers into submission.zip",
    "report": "write report.html from what the run recorded",
    "data": "fetch datasets, build questions, guard the benchmark, examine clips",
    "validate": "name every problem of a submission.zip",
    "score": "official, strict and rubric scores of predictions, with intervals",
    "candidates": "write an iteration's right candidates for `score --rubrics` to judge",
    "compare": "is it better, and where did it get worse: paired tables of predictions",
    "analyze": "what goes wrong: errors by category, loops, overlong and invalid answers",
    "inspect": "what the model really sees and says for one question",
    "prompts": "compare prompt variants on held-out questions, search for a better one",
    "plan": "GPU hours, wall time, storage and price of a run before it is started",
    "audit": "what of a model is quantised, wrapped, frozen and trained",
    "merge": "merge an adapter into its base, shard by shard, in the original layout",
    "serve-args": "the vLLM command lines that serve a model on a node",
    "cluster": "run and watch stages on Kubernetes: run-job, scale, status, submit, wait, ...",
    "serve-config": "merge what vLLM servers are to load for a run, and write a file for each",
    "bench": "measure speed and memory, as JSON that names the machine",
    "gate": "is a change better or worse: results of bench against a baseline",
    "tiny": "make the embedded benchmark, or train the embedded model",
}

_USAGE: Final = """usage: mmar-jobs COMMAND [--setting value ...]

A large audio language model teaches itself to reason about sound.

commands:
{commands}

`mmar-jobs COMMAND --help` lists every setting with its default. A setting may also come from a
variable (MMAR_SAMPLING__TEMPERATURE=0.9) or a TOML file (--config FILE); flags win.

exit codes: 0 done, 1 a defect, 2 wrong settings, 3 wrong data or a failed check,
            4 promotion refused where that was asked for, 75 try again
"""


def usage() -> str:
    """The text of `mmar-jobs --help`."""
    lines = [f"  {name:<12} {summary}" for name, summary in COMMANDS.items()]
    return _USAGE.format(commands="\n".join(lines))


def main() -> int:
    """Run one command; returns the exit code."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(usage())
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version  # noqa: PLC0415 - only --version pays for it

        sys.stdout.write(f"mmar-jobs {version('mmar-jobs')}\n")
        return 0
    if os.getpid() == 1:
        # The first process of a container: the kernel drops what it has no handler for, and a
        # stage that is asked to stop while it imports would be killed with the run's lease.
        signal.signal(signal.SIGTERM, _stop)
    from mmar_jobs.cli import run_command  # noqa: PLC0415 - --help must not import pydantic

    return run_command(arguments[0], arguments[1:])


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    del number, frame
    raise SystemExit(_TRY_AGAIN)


if __name__ == "__main__":
    raise SystemExit(main())
