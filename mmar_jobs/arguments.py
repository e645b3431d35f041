"""The argument parser of the commands that need no settings: a wrong flag is one line, exit 2.

Not here: the commands of a run, whose flags are their settings (settings.py).
"""

import argparse
import math
from collections.abc import Callable

from mmar_jobs.errors import SettingsError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises SettingsError instead of printing usage and exiting."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Called by argparse for everything that it cannot parse."""
        raise SettingsError(f"{message}; see {self.prog} --help")


def whole_number(least: int) -> Callable[[str], int]:
    """A type of argument: a whole number of at least `least`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of {least} or more")
        return int(text)

    return parse


def not_negative(text: str) -> float:
    """A type of argument: a finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of 0 or more")
    return value
