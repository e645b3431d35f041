"""The command `data`: one word more says what is done with data sets.

Not here: the work itself; each word has a module of its own, imported only when it is asked for.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Final, NamedTuple

from mmar_jobs.arguments import Parser


class _Word(NamedTuple):
    """A word after `data`: where it is defined, and what it does in one line."""

    module: str
    summary: str


_WORDS: Final = {
    "fetch": _Word("fetch_command", "download a data set, or cut clips out of videos"),
    "build": _Word("build_command", "turn data sets into questions, mixed and split by audio"),
    "guard": _Word("guard_command", "refuse training rows that match the benchmark"),
    "doctor": _Word("doctor_command", "examine every clip: length, loudness, silence, duplicates"),
}


def data(arguments: Sequence[str]) -> int:
    """Run one of the words; `mmar-jobs data WORD --help` lists its flags."""
    parser = Parser("mmar-jobs data", description="Fetch, build, guard and examine data sets.")
    words = parser.add_subparsers(dest="word", required=True, metavar="WORD")
    asked = arguments[0] if arguments else ""
    for name, word in _WORDS.items():
        sub = words.add_parser(name, help=word.summary, description=f"{_sentence(word.summary)}")
        if name == asked:
            getattr(_module(word), f"add_{name}_arguments")(sub)
    chosen = parser.parse_args(arguments)
    return int(getattr(_module(_WORDS[chosen.word]), chosen.word)(chosen))


def _module(word: _Word) -> object:
    return import_module(f"mmar_jobs.datasets.{word.module}")


def _sentence(summary: str) -> str:
    return f"{summary[0].upper()}{summary[1:]}."
