"""What a source makes of its rows: a question whose choices may still have to be drawn.

Not here: the sources (countingqa.py, musicbench.py, tacos.py, tables.py), drawing (choices.py).
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from mmar_jobs.records import Record

# Which answers may stand beside each other; see choices.py.
Rule = Literal["any", "owners", "tempo"]
_UNSAFE: Final = re.compile(r"[^\w.-]+")
_MAX_ID: Final = 160


@dataclass(frozen=True)
class Draft:
    """A question about the clip that its row calls `audio`.

    Where `choices` is empty they are drawn from the answers of all drafts of the same `pool`.
    `owner` is what the answer is true of: a recording, whatever it was augmented to; `also_true`
    are other answers that are true of it.
    """

    id: str
    audio: str
    text: str
    answer: str
    choices: tuple[str, ...] = ()
    pool: str = ""
    rule: Rule = "any"
    owner: str = ""
    also_true: tuple[str, ...] = ()
    dataset: str = ""
    modality: str = ""
    category: str = ""
    sub_category: str = ""
    language: str | None = None
    source_ids: tuple[str, ...] = ()


class LeftOut(Record):
    """A row that became no question: where it is, and why."""

    source: str
    row: str
    reason: str


# A source's reader: from a folder or file, drafts and what is left out, in the order of the rows.
Reader = Callable[[Path, str, int], Iterator[Draft | LeftOut]]


def plain_id(*parts: str) -> str:
    """An id of words, digits, dots and dashes."""
    return "-".join(_UNSAFE.sub("_", part).strip("_") for part in parts)[:_MAX_ID]


def row_files(path: Path, *names: str) -> list[Path]:
    """The files of rows of a source: itself, or those in its folder that are called one of `names`.

    Sorted; empty where there is none.
    """
    if path.is_file():
        return [path]
    return sorted(found for name in names for found in path.rglob(name) if found.is_file())
