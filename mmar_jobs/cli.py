"""The composition root: builds the edges, runs one command, turns errors into one line and a code.

Not here: what commands do, and their settings.
"""

import difflib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from mmar_jobs import logs, settings
from mmar_jobs.__main__ import COMMANDS
from mmar_jobs.artifact import Artifact
from mmar_jobs.engine.open import open_engine
from mmar_jobs.errors import (
    DataError,
    ExitCode,
    MmarError,
    NothingToLearn,
    PromotionRefused,
    SettingsError,
    TryAgain,
)
from mmar_jobs.failures import explain
from mmar_jobs.layout import report_key, run_key
from mmar_jobs.outcome import NOTHING_LEARNED, Outcome, outcome_of, write_outcome
from mmar_jobs.output import write_output
from mmar_jobs.progress import Advance, Tracker, bars, lines, no_bar
from mmar_jobs.recipes import check_installed
from mmar_jobs.settings import Command
from mmar_jobs.sigterm import noted_sigterm
from mmar_jobs.stages import Edges
from mmar_jobs.store import open_store

Handler = Callable[[Sequence[str]], int]

# Commands without a run: where each is defined, imported only when it is the one that runs.
_PLAIN: Final = {
    "data": "mmar_jobs.datasets.command:data",
    "validate": "mmar_jobs.check_command:validate",
    "score": "mmar_jobs.check_command:score_predictions",
    "candidates": "mmar_jobs.judge.candidates_command:write_candidates",
    "compare": "mmar_jobs.analysis.command:compare",
    "analyze": "mmar_jobs.analysis.command:analyze",
    "inspect": "mmar_jobs.inspection.command:inspect",
    "prompts": "mmar_jobs.prompting.command:prompts",
    "plan": "mmar_jobs.planning.command:plan",
    "audit": "mmar_jobs.qlora.audit_command:audit",
    "merge": "mmar_jobs.qlora.merge_command:merge",
    "serve-args": "mmar_jobs.engine.serving_command:serve_args_command",
    "serve-config": "mmar_jobs.serve_config:serve_config",
    "bench": "mmar_jobs.bench.command:bench",
    "gate": "mmar_jobs.bench.gate_command:gate",
    "cluster": "mmar_jobs.cluster.command:cluster",
    "tiny": "mmar_jobs.tiny.command:tiny",
}


def run_command(name: str, arguments: Sequence[str]) -> int:
    """Run one command by name; every expected error is one line on standard error."""
    try:
        return int(_handler(name)(arguments))
    except MmarError as error:
        return _fail(name, error)
    except KeyboardInterrupt:
        _say(f"mmar-jobs {name}: interrupted: run the same command again, finished work is kept")
        return int(ExitCode.TRY_AGAIN)
    except Exception as error:
        known = explain(error)
        if known is None:
            raise
        return _fail(name, known)


def _fail(name: str, error: MmarError) -> int:
    _say(f"mmar-jobs {name}: {error}")
    return int(error.exit_code)


def _say(text: str) -> None:
    sys.stderr.write(" ".join(text.splitlines()) + "\n")


def _handler(name: str) -> Handler:
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise SettingsError(f"there is no command {name}{hint} (mmar-jobs --help lists them)")
    if name not in _PLAIN:
        return lambda arguments: _stage_command(name, arguments)
    module, _, function = _PLAIN[name].partition(":")
    handler: Handler = getattr(import_module(module), function)
    return handler


def _stage_command(name: str, arguments: Sequence[str]) -> int:
    kind: type[Command] = getattr(settings, f"{name.capitalize()}Command")
    command = settings.parse(kind, arguments, prog=f"mmar-jobs {name}")
    if name in ("train", "run"):
        check_installed(command.lora)  # type: ignore[attr-defined]
    process = settings.launched()
    if process.num == 1 and _num_processes(name, command) > 1:
        from mmar_jobs.launch import launch  # noqa: PLC0415 - rarely needed

        return launch([name, *arguments], _num_processes(name, command))
    if process.num > 1 and name != "train":
        raise SettingsError(f"{name} runs in one process, {process.num} were started: only train")
    log = logs.configure(command.log_format).bind(run_id=command.run_id, command=name)
    store = open_store(command.store, endpoint_url=command.endpoint_url)
    console = Console(stderr=True)
    with _preemptible(_tracker(console, log) if process.rank == 0 else no_bar) as track:
        edges = Edges(store=store, open_engine=open_engine, track=track, log=log)
        # The report only reads, so it may be asked for while a run is under way; of the processes
        # of one training the first alone writes.
        is_free = name == "report" or process.rank > 0
        lease = nullcontext() if is_free else store.lease(run_key(command.run_id))
        with lease:
            artifact, outcome = _run_to_outcome(name, command, edges)
    if command.outcome_file is not None and process.rank == 0:
        write_outcome(command.outcome_file, outcome)
    if artifact is not None:
        manifest = artifact.manifest
        log.info(logs.FINISHED, artifact=artifact.key, **manifest.counts, **manifest.cost)
    return int(ExitCode.DONE)


def _tracker(console: Console, log: Any) -> Tracker:
    return bars(console) if console.is_terminal else lines(log)


def _num_processes(name: str, command: Any) -> int:
    """How many processes a command is to run in."""
    if name not in ("train", "run"):
        return 1
    num: int = command.hardware.processes
    if name == "run" and num > 1:
        raise SettingsError(
            "--hardware.processes is for train: run takes one process; run the stages one by one"
        )
    return num


def _run_to_outcome(name: str, command: Any, edges: Edges) -> tuple[Artifact | None, Outcome]:
    """Where the outcome is asked for, a model that has learned it all is one and no error."""
    try:
        artifact = _run_stage(name, command, edges)
    except NothingToLearn as error:
        if command.outcome_file is None or name != "filter" or command.iteration == 1:
            raise
        edges.log.warning("nothing_learned", reason=str(error))
        return None, NOTHING_LEARNED
    return artifact, outcome_of(name, artifact)


def _run_stage(name: str, command: Any, edges: Edges) -> Artifact | None:
    if name == "run":
        return _run(command, edges)
    if name == "report":
        _report(command, edges, command.output)
        return None
    stage = import_module(f"mmar_jobs.stages.{name}")
    artifact: Artifact = stage.run(command, edges)
    if name == "submit" and command.output is not None:
        _copy(artifact.read_bytes("submission.zip"), command.output)
    return artifact


def _run(command: settings.RunCommand, edges: Edges) -> Artifact:
    from mmar_jobs import loop, summary  # noqa: PLC0415 - heavy

    try:
        submission = loop.run(command, edges)
    except (DataError, PromotionRefused):
        with suppress(DataError):  # nothing to report yet, or what is reported is what is broken
            _write_report(command, edges)
        raise
    _write_report(command, edges)
    _wide_console().print(summary.render_summary(edges.store, command.run_id))
    if command.output is not None:
        _copy(submission.read_bytes("submission.zip"), command.output / "submission.zip")
    return submission


def _wide_console() -> Console:
    """Standard output; where it is no terminal, wide enough for the end table."""
    console = Console()
    return console if console.is_terminal else Console(width=100)


def _write_report(command: settings.RunCommand, edges: Edges) -> None:
    output = None if command.output is None else command.output / "report.html"
    _report(command, edges, output)


def _report(command: Command, edges: Edges, output: Path | None) -> None:
    from mmar_jobs.report import write_report  # noqa: PLC0415 - matplotlib

    html = write_report(edges.store, command.run_id, endpoint_url=command.endpoint_url)
    edges.log.info("report_written", key=report_key(command.run_id), size_bytes=len(html))
    if output is not None:
        _copy(html, output)


def _copy(data: bytes, path: Path) -> None:
    write_output(path, data)
    sys.stdout.write(f"{path}\n")


@contextmanager
def _preemptible(track: Tracker) -> Iterator[Tracker]:
    """Turn SIGTERM into TryAgain at the next point where all finished work is durable."""
    with noted_sigterm() as asked:

        @contextmanager
        def tracked(label: str, total: int) -> Iterator[Advance]:
            with track(label, total) as advance:

                def checked(num_done: int) -> None:
                    advance(num_done)
                    if asked.is_set():
                        raise TryAgain(
                            "asked to stop (SIGTERM): run the same command again to go on"
                        )

                yield checked

        yield tracked
