"""Flags that benches share, and the values they take.

Not here: the benches' own flags (command.py, cpu_command.py).
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any


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


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return _whole(text, 1)


def count(text: str) -> int:
    """A whole number of at least 0."""
    return _whole(text, 0)


def _whole(text: str, smallest: int) -> int:
    if not text.strip().isdecimal() or int(text) < smallest:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least {smallest}")
    return int(text)


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
    return tuple(positive(part) for part in text.split(","))
