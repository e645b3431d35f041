"""The command `mmar-jobs candidates`: files from which `score --rubrics` rates a run's candidates.

Not here: what is in them (candidates.py). Only questions with a rubric are rated: a training set
has none unless somebody writes them, and the benchmark's are never trained on.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mmar_jobs.arguments import Parser, whole_number
from mmar_jobs.artifact import require_artifact
from mmar_jobs.errors import DataError, ExitCode
from mmar_jobs.judge.candidates import rows_to_rate
from mmar_jobs.judge.command import read_rubrics
from mmar_jobs.layout import TRAIN, candidates_key, questions_key
from mmar_jobs.output import write_output
from mmar_jobs.questions import read_split
from mmar_jobs.records import Candidate
from mmar_jobs.store import open_store

FILES: Final = ("predictions.jsonl", "questions.jsonl", "rubrics.jsonl")


def write_candidates(arguments: Sequence[str]) -> int:
    """Write the three files that `score --rubrics` takes for one iteration's candidates."""
    chosen = _parser().parse_args(arguments)
    store = open_store(chosen.store, endpoint_url=chosen.endpoint_url)
    asked = read_split(require_artifact(store, questions_key(chosen.run_id), stage="ingest"), TRAIN)
    candidates = require_artifact(
        store, candidates_key(chosen.run_id, chosen.iteration), stage="generate"
    )
    rubrics = read_rubrics(chosen.rubric_file, endpoint_url=chosen.endpoint_url)
    rows = list(
        rows_to_rate(candidates.records(Candidate), {one.id: one for one in asked}, rubrics)
    )
    if not rows:
        raise DataError(
            f"no right candidate of iteration {chosen.iteration} has a rubric in "
            f"{chosen.rubric_file}: its ids must be those of training questions"
        )
    for name, column in zip(FILES, zip(*rows, strict=True), strict=True):
        lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in column)
        write_output(chosen.output / name, lines)
    return ExitCode.DONE


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "mmar-jobs candidates",
        description="Write an iteration's right candidates for `score --rubrics` to judge.",
    )
    parser.add_argument("--store", required=True, help="the run's store (required)")
    parser.add_argument("--run-id", required=True, help="the run (required)")
    parser.add_argument(
        "--iteration", type=whole_number(1), default=1, help="turn of the loop (default: 1)"
    )
    parser.add_argument(
        "--endpoint-url", help="S3 endpoint, for servers other than AWS (default: none)"
    )
    parser.add_argument(
        "--rubric-file",
        metavar="FILE",
        required=True,
        help="rubrics of training questions, as for score; path or URI (required)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FOLDER",
        help=f"folder for {', '.join(FILES)} (required)",
    )
    return parser
