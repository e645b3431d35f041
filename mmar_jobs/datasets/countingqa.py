"""CountingQA: open questions about sounds in a row become multiple choice.

Not here: drawing the choices. Rows of audioskills_xl/CountingQA.json in nvidia/AudioSkills: id,
sound (concat_*.wav), duration, conversations; answers are sentences ("The bell rings three times
in this audio."). A count becomes its numeral, as do all its wrong choices; any other answer stays
as it is and meets answers to the very same question. What holds no or several numbers is left out.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mmar_jobs.datasets.conversations import question_and_answer
from mmar_jobs.datasets.drafts import Draft, LeftOut, plain_id, row_files
from mmar_jobs.datasets.listed_choices import match_answer, take_choices
from mmar_jobs.datasets.rows import Row, read_rows, text_of
from mmar_jobs.errors import DataError
from mmar_jobs.records import canonical

_UNITS: Final = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)
_NUMBERS: Final = {word: number for number, word in enumerate(_UNITS.split())} | {
    "never": 0,
    "once": 1,
    "twice": 2,
    "thrice": 3,
}
_WORD: Final = "|".join(_NUMBERS)
_TOKEN: Final = re.compile(rf"(?<![\w.])(?:\d{{1,3}}|{_WORD})(?![\w.]*\d)(?!\w)", re.IGNORECASE)
_TIMES: Final = re.compile(
    rf"(?<![\w.])(?:(\d{{1,3}}|{_WORD})[ -](?:times?|occurrences?|instances?)|"
    r"(once|twice|thrice|never))(?!\w)",
    re.IGNORECASE,
)
_COUNTS: Final = re.compile(r"\b(?:how (?:many|often)|number of|count)\b", re.IGNORECASE)


def read_countingqa(path: Path, dataset: str, seed: int) -> Iterator[Draft | LeftOut]:
    """Drafts of a file, or of every CountingQA*.json below a folder."""
    del seed
    files = row_files(path, "CountingQA*.json", "CountingQA*.jsonl")
    if not files:
        raise DataError(f"{path} has no CountingQA*.json: give the file, or fetch it again")
    for file in files:
        for row in read_rows(file):
            try:
                yield _draft(row, dataset)
            except ValueError as error:
                yield LeftOut(source=dataset, row=f"{file.name} {row.number}", reason=str(error))


def _draft(row: Row, dataset: str) -> Draft:
    if row.problem:
        raise ValueError(row.problem)
    asked, answered = question_and_answer(row.value)
    listed = take_choices(asked)
    answer, pool, sub_category, choices = "", "", "which", listed.choices
    if choices:
        answer = match_answer(answered, listed) or ""
        if not answer:
            raise ValueError("its answer is not among its choices")
    elif _COUNTS.search(asked):
        answer, pool, sub_category = str(parse_count(answered)), "count", "count"
    else:
        answer, pool = answered, canonical(asked)
    sound = text_of(row.value, ("sound", "audio", "audio_path"))
    return Draft(
        id=plain_id(dataset, text_of(row.value, ("id", "question_id", "sound")), str(row.number)),
        audio=sound,
        text=listed.text,
        answer=answer,
        choices=choices,
        pool=pool,
        owner=sound,
        dataset=dataset,
        modality="sound",
        category="counting" if sub_category == "count" else "sequence",
        sub_category=sub_category,
    )


def parse_count(answer: str) -> int:
    """The one number in an answer; raises ValueError where there is none or more than one.

    "N times" and the like come first: "One dog barks three times" is 3.
    """
    times = {_value(first or second) for first, second in _TIMES.findall(answer)}
    numbers = times or {_value(found) for found in _TOKEN.findall(answer)}
    if not numbers:
        raise ValueError("asks for a count, and its answer holds no number")
    if len(numbers) > 1:
        raise ValueError("asks for a count, and its answer holds several numbers")
    return numbers.pop()


def _value(text: str) -> int:
    return int(text) if text.isdigit() else _NUMBERS[text.lower()]
