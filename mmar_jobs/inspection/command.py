"""The command `mmar-jobs inspect`: what the model really sees and says for one question.

Not here: looking (look.py), and how it is shown (terminal.py, page.py).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmar_jobs.arguments import Parser
from mmar_jobs.errors import ExitCode, SettingsError
from mmar_jobs.output import write_output

if TYPE_CHECKING:
    from mmar_jobs.inspection.subject import Asked

_NO_TERMINAL_WIDTH = 100


def inspect(arguments: Sequence[str]) -> int:
    """Show one question on the terminal, and as a page where --html names one."""
    chosen = _parser().parse_args(arguments)
    from rich.console import Console  # noqa: PLC0415 - after --help

    from mmar_jobs.inspection.look import look  # noqa: PLC0415 - torch
    from mmar_jobs.inspection.subject import open_subject  # noqa: PLC0415 - torch
    from mmar_jobs.inspection.terminal import render_inspection  # noqa: PLC0415

    with open_subject(_asked(chosen)) as (subject, way):
        seen = look(subject, way)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_NO_TERMINAL_WIDTH)
    console.print(render_inspection(seen, width=console.width))
    if chosen.html is not None:
        from mmar_jobs.inspection.page import render_page  # noqa: PLC0415 - matplotlib

        write_output(chosen.html, render_page(seen))
        sys.stdout.write(f"{chosen.html}\n")
    return ExitCode.DONE


def _parser() -> Parser:
    parser = Parser(
        "mmar-jobs inspect", description="What the model really sees and says for one question."
    )
    add = parser.add_argument
    add("question_id", metavar="QUESTION_ID", help="id of the question")
    add("--model", type=Path, required=True, help="folder of the base model (required)")
    add("--questions", default="", help="file that has the question, path or URI (default: none)")
    add("--store", default="", help="store of the run that has the question (default: none)")
    add("--run-id", default="", help="that run (default: none)")
    add("--adapter", type=Path, help="adapter folder to ask as well (default: the run's best)")
    add("--iteration", type=int, help="the run's adapter of this iteration; 0: none")
    add("--audio-root", default="", help="where clips lie (default: beside the questions)")
    add("--endpoint-url", help="S3 endpoint, for servers other than AWS (default: none)")
    add("--prompt", default="", help="prompt version or @FILE (default: the run's, else v9)")
    add(
        "--variants",
        default="baseline,v7,v8,v9,v12",
        help='prompts shown side by side, "" for none (default: %(default)s)',
    )
    add("--draws", type=int, default=3, help="sampled answers a model (default: %(default)s)")
    add("--max-tokens", type=int, default=0, help="longest answer (default: the run's, else 512)")
    add("--threads", type=int, default=0, help="CPU threads, 0 for all (default: %(default)s)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="(default: float32)")
    add("--html", type=Path, help="also write a page to this file (default: none)")
    return parser


def _asked(chosen: argparse.Namespace) -> "Asked":
    from mmar_jobs.inspection.subject import Asked  # noqa: PLC0415 - torch
    from mmar_jobs.recipes import EngineSettings  # noqa: PLC0415 - pydantic

    for name in ("draws", "max_tokens", "threads"):
        value = getattr(chosen, name)
        if not 0 <= value <= 100_000:
            raise SettingsError(f"--{name.replace('_', '-')} {value} must be 0 to 100000")
    return Asked(
        question_id=chosen.question_id,
        model=chosen.model,
        questions=chosen.questions,
        store=chosen.store,
        run_id=chosen.run_id,
        adapter=chosen.adapter,
        iteration=chosen.iteration,
        audio_root=chosen.audio_root,
        endpoint_url=chosen.endpoint_url,
        version=chosen.prompt,
        variants=tuple(name.strip() for name in chosen.variants.split(",") if name.strip()),
        num_draws=chosen.draws,
        max_tokens=chosen.max_tokens,
        engine=EngineSettings(threads=chosen.threads, dtype=chosen.dtype),
    )
