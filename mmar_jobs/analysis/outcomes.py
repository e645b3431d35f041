"""What a prediction file says about every question of a META file, as columns.

Not here: reading META (items.py), comparing two files (compare.py).

Shapes: Q questions.
"""

import json
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmar_jobs.analysis.items import Items
from mmar_jobs.errors import DataError
from mmar_jobs.grade import parse_answer
from mmar_jobs.lines import Lines
from mmar_jobs.prediction_file import duplicate, parse_row
from mmar_jobs.score import official_correct

_NUM_SHOWN: Final = 5
# Where more than half of a file's ids are unknown, it answers another set of questions.
_MAX_UNKNOWN: Final = 0.5


class Matcher(StrEnum):
    """Which answers count as right: see score.py."""

    STRICT = "strict"
    OFFICIAL = "official"


@dataclass(frozen=True)
class Outcomes:
    """One prediction file: `right_Q` by the matcher, `named_Q` where it names one choice.

    `offset_Q` finds the row in the file again, for its thinking.
    """

    lines: Lines
    name: str
    right_Q: NDArray[np.bool_]
    named_Q: NDArray[np.bool_]
    offset_Q: NDArray[np.int64]

    def row(self, i: int) -> dict[str, Any]:
        """The prediction of the question at a place."""
        row: dict[str, Any] = json.loads(self.lines.at(int(self.offset_Q[i])))
        return row


def read_outcomes(lines: Lines, items: Items, *, matcher: Matcher, name: str) -> Outcomes:
    """Grade a prediction file; DataError where its ids are not exactly those of META.

    A row without answer_prediction is a wrong answer here.
    """
    num = len(items.ids)
    right_Q, named_Q = np.zeros(num, dtype=np.bool_), np.zeros(num, dtype=np.bool_)
    offset_Q = np.full(num, -1, dtype=np.int64)
    unknown: list[str] = []
    num_rows = 0
    for line in lines:
        row = parse_row(line, lines.name)
        num_rows += 1
        i = items.place.get(row["id"])
        if i is None:
            unknown.append(row["id"])
            continue
        if offset_Q[i] >= 0:
            raise duplicate(line, lines.name, row["id"])
        offset_Q[i] = line.offset
        answer = row.get("answer_prediction")
        if answer is not None:
            right_Q[i], named_Q[i] = judge_answer(
                answer, items.choices_Q[i], int(items.answer_Q[i]), matcher
            )
    _check_ids(lines.name, num_rows, unknown, offset_Q, items)
    return Outcomes(lines, name, right_Q, named_Q, offset_Q)


def judge_answer(
    text: str, choices: tuple[str, ...], answer: int, matcher: Matcher
) -> tuple[bool, bool]:
    """Whether an answer is right, and whether it names exactly one choice."""
    text = text.strip()
    if text in choices:  # nearly always; parse_answer would say the same 20 times slower
        place = choices.index(text)
        is_named, is_right = True, place == answer
    else:
        named = parse_answer(text, choices)
        is_named, is_right = named is not None, named == choices[answer]
    if matcher is Matcher.OFFICIAL:
        is_right = official_correct(text, choices[answer], choices)
    return is_right, is_named


def _check_ids(
    name: str, num_rows: int, unknown: list[str], offset_Q: NDArray[np.int64], items: Items
) -> None:
    if not num_rows:
        raise DataError(f"{name} has no predictions: give JSONL rows or a submission zip")
    if len(unknown) > _MAX_UNKNOWN * num_rows:
        raise DataError(
            f"{name} answers another benchmark: {len(unknown)} of its {num_rows} ids are not in "
            f"{items.lines.name}, the first is {unknown[0]!r}: give the META that it answers"
        )
    if unknown:
        raise DataError(
            f"{name} has {len(unknown)} unknown ids: {_listed(unknown)}: leave these rows out, or "
            "give the META that has them"
        )
    missing = np.flatnonzero(offset_Q < 0)
    if len(missing):
        shown = [items.ids[i] for i in islice(missing, _NUM_SHOWN)]
        raise DataError(
            f"{name} has no prediction of {len(missing)} of {len(items.ids)} questions: "
            f"{_listed(shown, len(missing))}: predict them, or give a META without them"
        )


def _listed(keys: list[str], num: int | None = None) -> str:
    shown = ", ".join(repr(key) for key in keys[:_NUM_SHOWN])
    num_more = (num or len(keys)) - len(keys[:_NUM_SHOWN])
    return f"{shown} and {num_more} more" if num_more else shown
