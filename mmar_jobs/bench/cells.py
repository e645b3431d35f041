"""Cells of a benchmark's matrix: a bench with its flags, as the one text that people write; pure.

Not here: what the bench measures, and where its results lie (archive.py).
"""

import argparse
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mmar_jobs.errors import SettingsError
from mmar_jobs.manifest import canonical_json, sha256

# What is recorded is said by whoever records it.
_RECORDED: Final = ("--json", "--commit", "--image")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Cell:
    """One bench with its flags; equal cells measure the same."""

    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the bench."""
        return self.arguments[0]

    @property
    def digest(self) -> str:
        """Of name and flags, 16 hexadecimal digits."""
        return sha256(canonical_json(list(self.arguments)))[:16]

    @property
    def key(self) -> str:
        """Where its results lie below a commit, without a suffix."""
        return f"{self.name}/{self.digest}"

    def __str__(self) -> str:
        return shlex.join(self.arguments)


def parse_cell(text: str) -> Cell:
    """The cell of a text like "filter --candidates 50000"; SettingsError where it is none."""
    try:
        arguments = tuple(shlex.split(text))
    except ValueError as error:
        raise SettingsError(f"the bench {text!r} cannot be read: {error}") from None
    if not arguments or not re.fullmatch(r"[a-z][a-z-]*", arguments[0]):
        raise SettingsError(f"{text!r} does not begin with a bench's name: see bench --list")
    for each in arguments:
        if each.partition("=")[0] in _RECORDED:
            raise SettingsError(f"leave {each.partition('=')[0]} out of {text!r}: it is given")
    return Cell(arguments)


def parse_matrix(text: str) -> list[Cell]:
    """The cells of a workflow's matrix, JSON: [{"bench": "filter", "on": "cpu"}, ...]."""
    try:
        rows = json.loads(text)
        texts: Sequence[str] = [row["bench"] for row in rows]
    except (ValueError, TypeError, KeyError):
        raise SettingsError(
            'the matrix is no JSON list of {"bench": "NAME --flag ...", "on": "cpu" or "gpu"}'
        ) from None
    cells = [parse_cell(each) for each in texts]
    if not cells or len(set(cells)) != len(cells):
        raise SettingsError("the matrix is empty or has a bench twice")
    return cells


def commit_hash(text: str) -> str:
    """A type of argument: a whole commit hash, since results lie under it."""
    if not _COMMIT.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text} is no commit of 40 digits: git rev-parse HEAD")
    return text
