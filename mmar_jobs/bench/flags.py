"""Flags that benches share, and the values they take.

Not here: the benches' own flags (command.py, cpu_command.py).
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from mmar_jobs.arguments import whole_number
from mmar_jobs.bench.archive import Archive
from mmar_jobs.errors import SettingsError
from mmar_jobs.settings import store_address

positive: Final = whole_number(1)
count: Final = whole_number(0)


def add_flag(parser: argparse.ArgumentParser) -> Callable[..., None]:
    """A function that adds one flag whose help ends with its default."""

    def flag(name: str, text: str, **options: Any) -> None:
        shown = options.pop("shown", "%(default)s")
        parser.add_argument(name, help=f"{text} (default: {shown})", **options)

    return flag


def add_result_flags(parser: argparse.ArgumentParser) -> None:
    """Where figures go, and of what they are."""
    flag = add_flag(parser)
    flag("--commit", "commit to record", shown="what git says")
    flag("--image", "image to record, by digest", shown="none")
    flag("--json", "write JSON lines to this file, - for standard output", type=Path, shown="no")


def add_store_flags(parser: argparse.ArgumentParser) -> None:
    """Where results are kept: the store of the runs."""
    flag = add_flag(parser)
    flag(
        "--store",
        "folder or s3://bucket/prefix; results lie in its benchmarks/",
        shown="MMAR_STORE",
    )
    flag("--endpoint-url", "S3 endpoint, for servers other than AWS", shown="MMAR_ENDPOINT_URL")


def open_archive(chosen: argparse.Namespace) -> Archive:
    """The results that the flags, or else the environment, name."""
    store, endpoint_url = store_address()
    uri = chosen.store or store
    if not uri:
        raise SettingsError("say where results are kept: --store, or the variable MMAR_STORE")
    return Archive.at(uri, endpoint_url=chosen.endpoint_url or endpoint_url)


def positive_real(text: str) -> float:
    """A finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return number


def row_sizes(text: str) -> tuple[int, ...]:
    """Whole numbers of at least 1, with commas between them."""
    return tuple(positive(part.strip()) for part in text.split(","))
