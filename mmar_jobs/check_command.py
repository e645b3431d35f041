"""The commands that judge files without a run: `validate` a submission, `score` predictions.

Not here: the rules themselves (submission.py, score.py).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmar_jobs.arguments import Parser
from mmar_jobs.datasets.mmar import BadRow, parse_questions
from mmar_jobs.errors import DataError, ExitCode
from mmar_jobs.records import Question
from mmar_jobs.score import Accuracy, Score, score
from mmar_jobs.store import read_uri
from mmar_jobs.submission import problems, read_predictions


def validate(arguments: Sequence[str]) -> int:
    """Print every problem of a submission zip; exit 3 when there is any."""
    parser = Parser("mmar-jobs validate", description="Name every problem of a submission zip.")
    parser.add_argument("zip", metavar="ZIP", help="submission.zip, path or URI")
    _add_meta(parser)
    chosen = parser.parse_args(arguments)
    found = problems(read_uri(chosen.zip), read_meta(chosen.meta))
    sys.stdout.writelines(f"{problem}\n" for problem in found)
    if found:
        raise DataError(f"{chosen.zip} has {len(found)} problems")
    sys.stdout.write(f"{chosen.zip} is a valid submission\n")
    return ExitCode.DONE


def score_predictions(arguments: Sequence[str]) -> int:
    """Print official and strict accuracy with 95 % intervals, by category and sub-category."""
    parser = Parser("mmar-jobs score", description="Accuracy of predictions, with 95 % intervals.")
    parser.add_argument(
        "predictions",
        metavar="PREDICTIONS",
        help="submission zip, or JSONL rows with id and answer_prediction; path or URI",
    )
    _add_meta(parser)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object (default: a table)"
    )
    chosen = parser.parse_args(arguments)
    answers = read_predictions(read_uri(chosen.predictions), chosen.predictions)
    scored = score(answers, read_meta(chosen.meta))
    text = scored.model_dump_json(indent=1) if chosen.json else "\n".join(_table(scored))
    sys.stdout.write(f"{text}\n")
    return ExitCode.DONE


def _add_meta(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--meta",
        required=True,
        help="benchmark questions (MMAR-meta.jsonl), path or URI (required)",
    )


def read_meta(uri: str) -> list[Question]:
    """The benchmark's questions; here a bad row is an error, or the score would leave it out."""
    questions: list[Question] = []
    for row in parse_questions(read_uri(uri).splitlines(), Path(uri).name):
        if isinstance(row, BadRow):
            raise DataError(f"{uri} line {row.line_number}: {row.reason}")
        questions.append(row)
    if not questions:
        raise DataError(f"{uri} holds no question: give the benchmark's meta file")
    return questions


def _table(scored: Score) -> list[str]:
    rows: list[tuple[str, Accuracy]] = [("all", scored)]
    rows += [(f"  {name or '(none)'}", row) for name, row in scored.by_category.items()]
    rows += [(f"    {name or '(none)'}", row) for name, row in scored.by_sub_category.items()]
    width = max(len(name) for name, _ in rows)
    return [f"{'':<{width}}  items answered  official (95 %)        strict (95 %)"] + [
        f"{name:<{width}}  {row.num_items:>5} {row.num_answered:>8}  "
        f"{_interval(row.official_accuracy, row.official_accuracy_ci95):<22} "
        f"{_interval(row.strict_accuracy, row.strict_accuracy_ci95)}"
        for name, row in rows
    ]


def _interval(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.3f} ({interval[0]:.3f}-{interval[1]:.3f})"
