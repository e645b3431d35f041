"""The questions of a META file as columns, so that a million of them fit and are grouped at once.

Not here: predictions (outcomes.py). A row that is plainly right is taken apart here, every other
one by the parser of datasets/mmar.py, whose word on it counts.

Shapes: Q questions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmar_jobs.datasets.mmar import BENCHMARK_MARK, BadRow, parse_questions
from mmar_jobs.errors import DataError
from mmar_jobs.lines import Line, Lines
from mmar_jobs.records import MAX_CHOICES, MIN_CHOICES, Question, canonical

DIMENSIONS: Final = ("modality", "category", "sub_category", "num_choices", "clip_length")
UNKNOWN: Final = "unknown"
# Upper ends in seconds; the benchmark's clips last at most 30 s.
_LENGTHS: Final = ((5, "under 5 s"), (10, "5 to 10 s"), (20, "10 to 20 s"), (30, "20 to 30 s"))
_LONGEST: Final = "30 s and more"
_LENGTH_ORDER: Final = (*(name for _, name in _LENGTHS), _LONGEST, UNKNOWN)
_MAX_ID: Final = 200


class Groups(NamedTuple):
    """One dimension: the name of each group, and the group of each question."""

    names: tuple[str, ...]
    codes_Q: NDArray[np.int32]


@dataclass(frozen=True)
class Items:
    """All questions of a META file, in its order.

    `choices_Q` and `answer_Q` (a place among the choices) are what an answer is graded against;
    `clip_Q` numbers the different clips; `offset_Q` finds the row in the file again.
    """

    lines: Lines
    ids: list[str]
    place: dict[str, int]
    choices_Q: list[tuple[str, ...]]
    answer_Q: NDArray[np.int32]
    clip_Q: NDArray[np.int32]
    offset_Q: NDArray[np.int64]
    groups: Mapping[str, Groups]

    def question(self, i: int) -> Question:
        """The whole question at a place."""
        line = self.lines.at(int(self.offset_Q[i]))
        (row,) = parse_questions([line], Path(self.lines.name).name)
        assert isinstance(row, Question), "it was one when the file was read"
        return row


class _Row(NamedTuple):
    key: str
    choices: tuple[str, ...]
    answer: int
    audio: str
    groups: tuple[str, ...]


class _Codes:
    """Numbers for keys, in the order in which they come."""

    def __init__(self) -> None:
        self.numbers: dict[Any, int] = {}
        self.codes: list[int] = []

    def add(self, key: Any) -> None:
        self.codes.append(self.numbers.setdefault(key, len(self.numbers)))

    def array(self) -> NDArray[np.int32]:
        return np.array(self.codes, dtype=np.int32)


def read_items(lines: Lines) -> Items:
    """Read a META file; DataError names the first row that is no question with a known answer."""
    place: dict[str, int] = {}
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}  # one object for equal choices
    choices_Q: list[tuple[str, ...]] = []
    answers: list[int] = []
    offsets: list[int] = []
    clips, kinds = _Codes(), _Codes()
    for line in lines:
        row = _parse(line, lines.name)
        if place.setdefault(row.key, len(place)) != len(choices_Q):
            raise DataError(
                f"{lines.name} line {line.number}: duplicate id {row.key!r}: keep one line of it"
            )
        choices_Q.append(shared.setdefault(row.choices, row.choices))
        answers.append(row.answer)
        offsets.append(line.offset)
        clips.add(row.audio)
        kinds.add(row.groups)
    if not place:
        raise DataError(f"{lines.name} holds no question: give the benchmark's meta file")
    return Items(
        lines=lines,
        ids=list(place),
        place=place,
        choices_Q=choices_Q,
        answer_Q=np.array(answers, dtype=np.int32),
        clip_Q=clips.array(),
        offset_Q=np.array(offsets, dtype=np.int64),
        groups={
            name: _groups([kind[i] for kind in kinds.numbers], kinds.array(), name)
            for i, name in enumerate(DIMENSIONS)
        },
    )


def _groups(name_by_kind: list[str], kind_Q: NDArray[np.int32], dimension: str) -> Groups:
    """One dimension out of the combinations in which they come."""
    names = sorted(set(name_by_kind))
    if dimension == "clip_length":
        names.sort(key=_LENGTH_ORDER.index)
    elif dimension == "num_choices":
        names.sort(key=lambda name: int(name.split()[0]))
    rank = {name: i for i, name in enumerate(names)}
    code_by_kind = np.array([rank[name] for name in name_by_kind], dtype=np.int32)
    return Groups(tuple(names), code_by_kind[kind_Q])


def length_name(length_s: float | None) -> str:
    """The group of a clip of so many seconds."""
    if not length_s or length_s <= 0:
        return UNKNOWN
    return next((name for end, name in _LENGTHS if length_s < end), _LONGEST)


def clip_length_s(row: Mapping[str, Any]) -> float | None:
    """Seconds of a row's clip: audio_s or duration, else the sum of its timestamp's spans.

    The benchmark writes a span as "00:01:32,00:02:02" or "1:32,2:02", several with semicolons.
    None where the row does not say.
    """
    for field in ("audio_s", "duration"):
        value = row.get(field)
        if isinstance(value, int | float) and value > 0:
            return float(value)
    text = row.get("timestamp")
    return _timestamp_s(text) if isinstance(text, str) else None


@lru_cache(maxsize=4096)
def _timestamp_s(text: str) -> float | None:
    try:
        ends = [[_seconds(end) for end in span.split(",")] for span in text.split(";")]
        return sum(end - start for start, end in ends) or None
    except ValueError:
        return None


def _seconds(clock: str) -> float:
    value = 0.0
    for part in clock.split(":"):
        value = 60 * value + float(part)
    return value


def _parse(line: Line, name: str) -> _Row:
    try:
        row = line.value()
        plain = _plain(row) if isinstance(row, dict) else None
    except (ValueError, RecursionError):
        row, plain = {}, None
    return plain or _full(line, row, name)


def _plain(row: dict[str, Any]) -> _Row | None:
    """A row that needs no cleaning; None for everything else, 24 us a row in the full parser."""
    key, choices, answer, audio = (
        row.get(name) for name in ("id", "choices", "answer", "audio_path")
    )
    if not (isinstance(key, str) and isinstance(answer, str) and isinstance(audio, str)):
        return None
    try:
        if not (isinstance(choices, list) and _are_plain(tuple(choices))):
            return None
    except TypeError:  # a choice that is a list or an object
        return None
    is_odd = (
        not 0 < len(key) <= _MAX_ID
        or not audio.strip()
        or answer not in choices
        or not _is_text(row.get("question"))
        or "text" in row
        or row.get("start_s")
        or row.get(BENCHMARK_MARK)
    )
    names = (row.get("modality"), row.get("category"), row.get("sub-category"))
    if is_odd or not all(map(_is_text, names)):
        return None
    groups = (*map(str, names), f"{len(choices)} choices", length_name(clip_length_s(row)))
    return _Row(key, tuple(choices), choices.index(answer), audio, groups)


@lru_cache(maxsize=4096)
def _are_plain(choices: tuple[object, ...]) -> bool:
    if not all(map(_is_text, choices)):
        return False
    num_different = len({canonical(str(choice)) for choice in choices})
    return MIN_CHOICES <= num_different == len(choices) <= MAX_CHOICES


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not value.isspace() and value != ""


def _full(line: Line, raw: Any, name: str) -> _Row:
    (row,) = parse_questions([line.text], Path(name).name)
    if isinstance(row, BadRow):
        raise DataError(f"{name} line {line.number}: {row.reason}")
    if row.answer is None:
        raise DataError(
            f"{name} line {line.number}: question {row.id} has no answer to score against: add it"
        )
    names = (row.modality, row.category, row.sub_category)
    groups = tuple(group or UNKNOWN for group in names)
    length_s = row.audio_s or (clip_length_s(raw) if isinstance(raw, dict) else None)
    groups += (f"{len(row.choices)} choices", length_name(length_s))
    return _Row(row.id, row.choices, row.choices.index(row.answer), row.audio, groups)
