"""The commands that judge files without a run: `validate` a submission, `score` predictions.

Not here: the rules themselves (submission.py, score.py).
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mmar_jobs.analysis.merged import merge_rows, unscriptable
from mmar_jobs.arguments import Parser
from mmar_jobs.columns import aligned
from mmar_jobs.errors import DataError, ExitCode, SettingsError
from mmar_jobs.judge.command import add_arguments, score_rubrics
from mmar_jobs.lines import open_lines
from mmar_jobs.logs import configure
from mmar_jobs.output import write_output
from mmar_jobs.prediction_file import read_rows
from mmar_jobs.question_file import read_question_file
from mmar_jobs.score import Accuracy, Score, score
from mmar_jobs.store import read_uri
from mmar_jobs.submission import problems

_NUM_SHOWN: Final = 3


def validate(arguments: Sequence[str]) -> int:
    """Print every problem of a submission zip; exit 3 when there is any."""
    parser = Parser("mmar-jobs validate", description="Name every problem of a submission zip.")
    parser.add_argument("zip", metavar="ZIP", help="submission.zip, path or URI")
    _add_meta(parser)
    chosen = parser.parse_args(arguments)
    found = problems(read_uri(chosen.zip), read_question_file(chosen.meta))
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
    if chosen.merged is not None and chosen.merged.suffix != ".jsonl":
        raise SettingsError(
            f"--merged {chosen.merged} must end in .jsonl: the official scripts look at it"
        )
    questions = read_question_file(chosen.meta)
    rows = read_rows(chosen.predictions)
    if chosen.merged is not None:
        _write_merged(chosen.merged, rows, chosen.meta)
    if chosen.rubrics or chosen.estimate:
        return score_rubrics(chosen, questions, rows)
    answers = {key: row.get("answer_prediction") for key, row in rows.items()}
    scored = score({key: text for key, text in answers.items() if text is not None}, questions)
    text = scored.model_dump_json(indent=1) if chosen.json else "\n".join(_table(scored))
    sys.stdout.write(f"{text}\n")
    return ExitCode.DONE


def _write_merged(path: Path, rows: Mapping[str, Mapping[str, Any]], meta: str) -> None:
    merged = list(merge_rows((json.loads(line.text) for line in open_lines(meta)), rows))
    write_output(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in merged))
    unknown = unscriptable(merged)
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


def _table(scored: Score) -> list[str]:
    groupings = {
        "modality": scored.by_modality,
        "category": scored.by_category,
        "sub-category": scored.by_sub_category,
    }
    rows = [("", "items", "answered", "official (95 %)", "strict (95 %)"), _cells("all", scored)]
    for grouping, groups in groupings.items():
        rows.append((grouping, "", "", "", ""))
        rows += [_cells(f"  {name or '(none)'}", row) for name, row in groups.items()]
    return [*aligned(rows), *_remarks(scored)]


def _cells(name: str, row: Accuracy) -> tuple[str, ...]:
    return (
        name,
        str(row.num_items),
        str(row.num_answered),
        _interval(row.official_accuracy, row.official_accuracy_ci95),
        _interval(row.strict_accuracy, row.strict_accuracy_ci95),
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
            f"choice ({shown}{more}). Predictions that only it takes for right: "
            f"{scored.num_official_only}."
        )
    if scored.num_unknown:
        remarks.append(f"Ignored predictions, with ids that META lacks: {scored.num_unknown}.")
    return remarks


def _interval(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.3f} ({interval[0]:.3f}-{interval[1]:.3f})"
