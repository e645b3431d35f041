"""The commands `compare` and `analyze`: files in, a table, JSON, a page or failed items out.

Not here: numbers (compare.py, signs.py), words (text.py), HTML (page.py).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mmar_jobs.analysis.compare import compare as compare_files
from mmar_jobs.analysis.items import read_items
from mmar_jobs.analysis.outcomes import Matcher, read_outcomes
from mmar_jobs.analysis.survey import failed_rows, survey
from mmar_jobs.analysis.survey_text import table as survey_table
from mmar_jobs.analysis.text import table
from mmar_jobs.arguments import Parser, whole_number
from mmar_jobs.errors import ExitCode, SettingsError
from mmar_jobs.lines import open_lines
from mmar_jobs.output import write_output

if TYPE_CHECKING:
    from mmar_jobs.analysis.sound import Sounds

_MIB: Final = 1024 * 1024


def compare(arguments: Sequence[str]) -> int:
    """Say whether prediction files are better than the first one, and where they got worse."""
    parser = Parser(
        "mmar-jobs compare", description="Is it better than the first, and where is it worse?"
    )
    parser.add_argument(
        "predictions",
        metavar="PREDICTIONS",
        nargs="+",
        help="two or more submission zips or JSONL files, path or URI; the first is the baseline",
    )
    _add_common(parser)
    parser.add_argument(
        "--all-pairs",
        action="store_true",
        help="compare every file with every other (default: with the first)",
    )
    parser.add_argument(
        "--max-items",
        type=whole_number(0),
        default=100,
        help="flipped questions that the page shows of each pair (default: 100)",
    )
    chosen = parser.parse_args(arguments)
    if len(chosen.predictions) < 2:
        raise SettingsError("one file cannot be compared: name a baseline and another file")
    items = read_items(open_lines(chosen.meta))
    files = [
        read_outcomes(open_lines(uri), items, matcher=chosen.matcher, name=name)
        for uri, name in zip(chosen.predictions, _names(chosen.predictions), strict=True)
    ]
    found = compare_files(items, files, matcher=chosen.matcher, all_pairs=chosen.all_pairs)
    if chosen.html is not None:
        from mmar_jobs.analysis.page import render_comparison  # noqa: PLC0415 - jinja2, matplotlib

        html = render_comparison(
            found, items, files, sounds=_sounds(chosen), max_items=chosen.max_items
        )
        write_output(chosen.html, html)
    lines = table(found, all_groups=chosen.all_groups)
    shown = found.model_dump_json(indent=1) if chosen.json else "\n".join(lines)
    sys.stdout.write(f"{shown}\n")
    return ExitCode.DONE


def analyze(arguments: Sequence[str]) -> int:
    """Say where one prediction file is wrong, and what is odd about its predictions."""
    parser = Parser("mmar-jobs analyze", description="Where is it wrong, and what is odd about it?")
    parser.add_argument(
        "predictions", metavar="PREDICTIONS", help="submission zip or JSONL file, path or URI"
    )
    _add_common(parser)
    parser.add_argument(
        "--worst",
        type=whole_number(0),
        default=10,
        help="groups that the list of worst has (default: 10)",
    )
    parser.add_argument(
        "--max-items",
        type=whole_number(0),
        default=100,
        help="failed questions that the page shows (default: 100)",
    )
    parser.add_argument(
        "--export",
        type=Path,
        metavar="FILE",
        help="also write the failed items as JSONL, marked so that nothing trains on them "
        "(default: do not)",
    )
    chosen = parser.parse_args(arguments)
    items = read_items(open_lines(chosen.meta))
    name = Path(chosen.predictions).stem
    lines = open_lines(chosen.predictions)
    file = read_outcomes(lines, items, matcher=chosen.matcher, name=name)
    found, signs_Q = survey(items, file, matcher=chosen.matcher)
    if chosen.html is not None:
        from mmar_jobs.analysis.survey_page import render_survey  # noqa: PLC0415 - matplotlib

        limits = (chosen.worst, chosen.max_items)
        sounds = _sounds(chosen)
        html = render_survey(found, items, file, signs_Q=signs_Q, sounds=sounds, limits=limits)
        write_output(chosen.html, html)
    if chosen.export is not None:
        rows = failed_rows(items, file, signs_Q)
        write_output(chosen.export, "".join(f"{json.dumps(row)}\n" for row in rows))
    told = survey_table(found, chosen.worst, all_groups=chosen.all_groups)
    shown = found.model_dump_json(indent=1) if chosen.json else "\n".join(told)
    sys.stdout.write(f"{shown}\n")
    return ExitCode.DONE


def _sounds(chosen: argparse.Namespace) -> "Sounds":
    from mmar_jobs.analysis.sound import Sounds  # noqa: PLC0415 - the page's clips

    root = _audio_root(chosen.audio_root, chosen.meta)
    return Sounds(root, chosen.html, embed_bytes=chosen.embed_mb * _MIB)


def _add_common(parser: Parser) -> None:
    parser.add_argument(
        "--meta",
        required=True,
        help="questions with answers (MMAR-meta.jsonl), path or URI (required)",
    )
    parser.add_argument(
        "--matcher",
        type=Matcher,
        choices=list(Matcher),
        default=Matcher.STRICT,
        help="what counts as right: names exactly the right choice, or the benchmark's own sets of "
        "words (default: strict)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object (default: a table)"
    )
    parser.add_argument(
        "--all-groups", action="store_true", help="print every group (default: one screen)"
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="also write a page to FILE (default: none)"
    )
    parser.add_argument(
        "--audio-root",
        help="folder or bucket below which the clips of the page lie (default: META's folder)",
    )
    parser.add_argument(
        "--embed-mb",
        type=whole_number(0),
        default=20,
        help="MiB of clips to put into the page; the others are played from their files "
        "(default: 20)",
    )


def _names(uris: Sequence[str]) -> list[str]:
    """Short names of files: their stems, or where these are not different, the whole paths."""
    if len(set(uris)) < len(uris):
        raise SettingsError("the same file is given twice: every file is compared once")
    stems = [Path(uri).stem for uri in uris]
    return stems if len(set(stems)) == len(stems) else list(uris)


def _audio_root(given: str | None, meta: str) -> str:
    if given is not None:
        return given
    folder = meta.rpartition("/")[0]
    return folder or "."
