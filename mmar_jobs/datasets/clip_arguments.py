"""The flags by which `guard` and `doctor` say how clips are examined, and what they mean.

Not here: the examination (clip_pool.py).
"""

import argparse
import os
from pathlib import Path

from rich.console import Console

from mmar_jobs.arguments import whole_number
from mmar_jobs.datasets.clip_cache import NAME
from mmar_jobs.datasets.clip_pool import Place
from mmar_jobs.datasets.question_file import QuestionFile
from mmar_jobs.progress import Tracker, bars, no_bar
from mmar_jobs.store.uri import parse_uri


def add_clip_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --endpoint-url, --jobs and --cache."""
    parser.add_argument(
        "--endpoint-url", default=None, help="an S3 server other than AWS (default: AWS)"
    )
    parser.add_argument(
        "--jobs",
        type=whole_number(0),
        default=0,
        help="processes that decode clips, 0 for all cores (default: %(default)s)",
    )
    parser.add_argument(
        "--cache",
        default="beside",
        help="SQLite file that remembers clips, `beside` the data or `none` (default: %(default)s)",
    )


def num_jobs(chosen: int) -> int:
    """The number of processes that `--jobs` means."""
    return chosen or os.cpu_count() or 1


def place_of(file: QuestionFile, chosen: argparse.Namespace) -> Place:
    """How the clips of a file are read."""
    cache = cache_path(chosen.cache, file.uri)
    return Place(file.audio_root, endpoint_url=chosen.endpoint_url, cache=cache)


def cache_path(chosen: str, uri: str) -> Path | None:
    """The file that `--cache` names; beside a bucket there is none."""
    if chosen == "none":
        return None
    if chosen != "beside":
        return Path(chosen)
    address = parse_uri(uri)
    if address.scheme != "file":
        return None
    path = Path(address.path)
    folder = path if path.is_dir() else path.parent
    # Data may lie where nobody may write: then nothing is remembered.
    return folder / NAME if os.access(folder, os.W_OK) else None


def tracker() -> Tracker:
    """Bars where a person looks on."""
    console = Console(stderr=True)
    return bars(console) if console.is_terminal else no_bar
