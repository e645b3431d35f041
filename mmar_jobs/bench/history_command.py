"""`mmar-jobs bench history`: all stored results as one page, with the commits that changed them.

Not here: finding changes (history.py), drawing (history_page.py).
"""

import argparse
import sys
from pathlib import Path

from mmar_jobs.bench.flags import add_flag
from mmar_jobs.errors import DataError, ExitCode
from mmar_jobs.lines import Lines
from mmar_jobs.output import write_output
from mmar_jobs.store import join_uri, open_store

_SUFFIX = ".jsonl"


def add_history_flags(parser: argparse.ArgumentParser) -> None:
    """Where results are, and where the page goes."""
    parser.add_argument("results", help="folder or s3://bucket/prefix with files of `bench --json`")
    parser.add_argument("--html", type=Path, required=True, help="page to write (required)")
    add_flag(parser)("--endpoint-url", "S3 endpoint, for servers other than AWS", shown="AWS")


def show_history(chosen: argparse.Namespace) -> int:
    """Write the page and say in a line a change what became worse; a broken file is an error."""
    # matplotlib and ruptures take a second that --help must not pay.
    from mmar_jobs.bench.history import make_series  # noqa: PLC0415
    from mmar_jobs.bench.history_page import render_history  # noqa: PLC0415
    from mmar_jobs.bench.result import parse_measurements  # noqa: PLC0415

    store = open_store(chosen.results, endpoint_url=chosen.endpoint_url)
    names = sorted(name for name in store.list("") if name.endswith(_SUFFIX))
    if not names:
        raise DataError(f"{chosen.results} has no results: give a folder of {_SUFFIX} files")
    figures = [
        one
        for name in names
        for one in parse_measurements(Lines(store.read(name), name), join_uri(store.uri, name))
    ]
    all_series = make_series(figures)
    write_output(chosen.html, render_history(all_series, chosen.results))
    for series in all_series:
        for point in series.changes:
            one = series.figures[point.index]
            word = {True: "better", False: "worse", None: "changed"}[series.is_good(point)]
            sys.stdout.write(
                f"{word}: {one.name} {100 * point.change:+.1f} % at {one.environment.commit}\n"
            )
    sys.stdout.write(f"{len(figures)} figures of {len(names)} files: {chosen.html}\n")
    return ExitCode.DONE
