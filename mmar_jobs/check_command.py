"""The commands that judge files without a run: `validate` a submission, `score` predictions.

Not here: the rules themselves (submission.py, score.py).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mmar_jobs.analysis.lines import open_lines
from mmar_jobs.analysis.merged import merge_rows, unscriptable
from mmar_jobs.analysis.outcomes import parse_row
from mmar_jobs.analysis.output import write_text
from mmar_jobs.arguments import Parser
from mmar_jobs.datasets.mmar import BadRow, parse_questions
from mmar_jobs.errors import DataError, ExitCode, SettingsError
from mmar_jobs.judge.command import add_arguments, score_rubrics
from mmar_jobs.logs import configure
from mmar_jobs.records import Question
from mmar_jobs.score import Accuracy, Score, score
from mmar_jobs.store import read_uri
from mmar_jobs.submission import problems, read_predictions

_NUM_SHOWN: Final = 3


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
    parser.add_argument(
        "--merged",
        type=Path,
        metavar="FILE.jsonl",
        help="also write META with the predictions for the official scripts (default: do not)",
    )
    add_arguments(parser)
    chosen = parser.parse_args(arguments)
    questions = read_meta(chosen.meta)
    if chosen.merged is not None:
        _write_merged(chosen.merged, chosen.predictions, chosen.meta)
    if chosen.rubrics or chosen.estimate:
        return score_rubrics(chosen, questions)
    answers = read_predictions(read_uri(chosen.predictions), chosen.predictions)
    scored = score(answers, questions)
    text = scored.model_dump_json(indent=1) if chosen.json else "\n".join(_table(scored))
    sys.stdout.write(f"{text}\n")
    return ExitCode.DONE


def _write_merged(path: Path, predictions: str, meta: str) -> None:
    if path.suffix != ".jsonl":
        raise SettingsError(f"--merged {path} must end in .jsonl: the official scripts look at it")
    by_id = {}
    for line in open_lines(predictions):
        row = parse_row(line, predictions)
        by_id[row["id"]] = row
    rows = list(merge_rows((json.loads(line.text) for line in open_lines(meta)), by_id))
    write_text(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    unknown = unscriptable(rows)
    if unknown:
        configure("auto").warning(
            "merged_not_scriptable",
            num_items=len(unknown),
            first=unknown[0],
            reason="evaluation.py ends with a KeyError on modalities or categories not of MMAR",
        )


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
    head = f"{'':<{width}}  items answered  official (95 %)        strict (95 %)"
    return [head, *(_line(name, width, row) for name, row in rows), *_remarks(scored)]


def _line(name: str, width: int, row: Accuracy) -> str:
    return (
        f"{name:<{width}}  {row.num_items:>5} {row.num_answered:>8}  "
        f"{_interval(row.official_accuracy, row.official_accuracy_ci95):<22} "
        f"{_interval(row.strict_accuracy, row.strict_accuracy_ci95)}"
    )


def _remarks(scored: Score) -> list[str]:
    """What a reader must know to compare these numbers with the official script's."""
    remarks = []
    if scored.num_with_answer < scored.num_items and scored.official_script_accuracy is not None:
        remarks.append(
            f"The official script skips {scored.num_items - scored.num_with_answer} items without "
            f"a prediction and would print {scored.official_script_accuracy:.3f} of "
            f"{scored.num_with_answer}."
        )
    if scored.num_order_blind:
        shown = ", ".join(scored.order_blind_ids[:_NUM_SHOWN])
        more = ", …" if scored.num_order_blind > _NUM_SHOWN else ""
        remarks.append(
            f"Order-blind: on {scored.num_order_blind} items the official matcher accepts a wrong "
            f"choice ({shown}{more}); {scored.num_official_only} predictions are right for it only."
        )
    if scored.num_unknown:
        remarks.append(f"{scored.num_unknown} predictions have an id that META lacks: ignored.")
    return remarks


def _interval(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.3f} ({interval[0]:.3f}-{interval[1]:.3f})"
