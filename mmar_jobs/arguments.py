"""The argument parser of the commands that need no settings: a wrong flag is one line, exit 2.

Not here: the commands of a run, whose flags are their settings (settings.py).
"""

import argparse

from mmar_jobs.errors import SettingsError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises SettingsError instead of printing usage and exiting."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Called by argparse for everything that it cannot parse."""
        raise SettingsError(f"{message}; see {self.prog} --help")
