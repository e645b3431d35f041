"""`mmar-jobs data doctor`: examine every clip of a question file before anyone learns from it.

Not here: what is found (doctor.py), the page (doctor_page.py), the benchmark (guard_command.py).
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from mmar_jobs.columns import aligned
from mmar_jobs.datasets.clip_arguments import add_clip_arguments, num_jobs, place_of, tracker
from mmar_jobs.datasets.doctor import (
    Diagnosis,
    Measure,
    diagnose,
    distinct_clips,
    nearest_copies,
)
from mmar_jobs.datasets.doctor_page import render_diagnosis
from mmar_jobs.datasets.fingerprint import Print
from mmar_jobs.datasets.question_file import hear, read_question_file
from mmar_jobs.errors import DataError, ExitCode
from mmar_jobs.output import write_output
from mmar_jobs.report.words import count, duration

_NUM_SHOWN: Final = 20


def add_doctor_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `data doctor`."""
    parser.add_argument("questions", metavar="QUESTIONS", help="JSONL; a path or URI")
    parser.add_argument(
        "--audio-root", default="", help="where clips lie (default: beside QUESTIONS)"
    )
    add_clip_arguments(parser)
    parser.add_argument(
        "--max-clip-s",
        type=float,
        default=30.0,
        help="longest clip that is used, s (default: %(default)s)",
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="also write a page with pictures (default: none)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object (default: a table)"
    )


def doctor(chosen: argparse.Namespace) -> int:
    """Examine the file; DataError, exit 3, where a row cannot be used."""
    file = read_question_file(
        chosen.questions, audio_root=chosen.audio_root, endpoint_url=chosen.endpoint_url
    )
    track = tracker()
    heard_prints: dict[str, Print] = {}
    heard = hear(
        file,
        place_of(file, chosen),
        track,
        heard_prints.__setitem__,
        jobs=num_jobs(chosen.jobs),
    )
    # Clips come as they are decoded; of two copies the one that stands first is the original.
    digests = [row.audio_sha256 for row in heard.questions if row.audio_sha256 in heard_prints]
    prints = {digest: heard_prints[digest] for digest in digests}
    copies = nearest_copies(prints, track)
    found = diagnose(file, heard, copies, max_clip_s=chosen.max_clip_s)
    if chosen.html is not None:
        write_output(chosen.html, render_diagnosis(found, distinct_clips(heard)))
    text = found.model_dump_json(indent=1) if chosen.json else "\n".join(_table(found))
    sys.stdout.write(f"{text}\n")
    if found.num_unusable:
        raise DataError(
            f"{found.num_unusable} of {found.num_rows} rows of {found.uri} cannot be used: mend or "
            "remove them"
        )
    return ExitCode.DONE


def _table(found: Diagnosis) -> Iterator[str]:
    """Measures, counts, then what cannot be used and what is odd, line by line."""
    yield (
        f"{found.uri}: {count(found.num_rows)} rows, {count(found.num_clips)} clips, "
        f"{duration(found.total_s)} of sound, {count(found.audio_tokens)} audio tokens"
    )
    rows: list[tuple[str, ...]] = [("", "least", "median", "95 %", "most")]
    rows += [(one.name, *(f"{value:,.1f}" for value in _spread(one))) for one in found.measures]
    yield from aligned(rows)
    yield _counts("file rate, Hz", found.file_rates_hz)
    yield _counts("channels", found.channels)
    yield _counts("language by the rows", found.languages)
    yield _counts("script of the questions", found.scripts)
    yield _counts("choices", found.num_choices)
    if not found.remarks:
        yield "nothing odd"
        return
    yield ", ".join(f"{kind} {count(number)}" for kind, number in found.counts.items())
    shown = found.ranked[:_NUM_SHOWN]
    yield from (f"line {one.line_number}: {one.kind}: {one.text}" for one in shown)
    if len(found.remarks) > len(shown):
        yield f"and {len(found.remarks) - len(shown)} more: --json and --html have them all"


def _spread(one: Measure) -> tuple[float, ...]:
    return one.least, one.median, one.percentile_95, one.most


def _counts(name: str, counts: Mapping[Any, int]) -> str:
    parts = (f"{key} ({count(number)})" for key, number in counts.items())
    return f"{name}: {', '.join(parts) or 'none'}"
