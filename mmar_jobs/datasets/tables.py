"""Any JSON lines, JSON array, CSV, TSV or parquet of questions, by the names of its columns.

Not here: reading files (rows.py). Which columns mean what stands in one table below; rows that the
rest of the project reads as they are (MMAR's, training rows, own Questions) are parsed by mmar.py.
"""

import json
import posixpath
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from mmar_jobs.datasets.conversations import question_and_answer
from mmar_jobs.datasets.drafts import Draft, LeftOut, plain_id, row_files
from mmar_jobs.datasets.listed_choices import Listed, match_answer, take_choices
from mmar_jobs.datasets.rows import SUFFIXES, Row, first_of, read_rows, text_of
from mmar_jobs.datasets.source_ids import source_ids
from mmar_jobs.errors import DataError

_ID: Final = ("id", "question_id", "uniqueId")
_AUDIO: Final = ("audio_path", "audio", "sound", "location", "filename", "file_name", "audioPath")
_CHOICES: Final = ("choices", "options")
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
_CATEGORY: Final = ("category", "task")
_SUB_CATEGORY: Final = ("sub_category", "sub-category", "subtask")
_URL: Final = ("url", "source_url")


def read_tables(path: Path, dataset: str, seed: int) -> Iterator[Draft | LeftOut]:
    """Drafts of a file, or of every questions.* below a folder."""
    del seed
    files = row_files(path, *(f"questions{suffix}" for suffix in SUFFIXES))
    if not files:
        raise DataError(f"{path} has no questions.jsonl or .csv: name the file itself")
    for file in files:
        for row in read_rows(file):
            try:
                yield _draft(row, dataset)
            except ValueError as error:
                yield LeftOut(source=dataset, row=f"{file.name} {row.number}", reason=str(error))


def _draft(row: Row, dataset: str) -> Draft:
    if row.problem:
        raise ValueError(row.problem)
    value = row.value
    asked, answered = question_and_answer(value)
    choices = _choices(value)
    listed = Listed(asked, choices, ()) if choices else take_choices(asked)
    answer = match_answer(answered, listed) if listed.choices else answered
    if answer is None:
        raise ValueError(f"its answer {answered[:60]!r} is not among its choices")
    audio = _audio(value)
    category = _optional(value, _CATEGORY)
    name = _optional(value, _ID) or f"{dataset}-{row.number}"
    given = value.get("source_ids")
    found = {str(entry) for entry in given} if isinstance(given, list) else set()
    found.update(source_ids(_optional(value, _URL), name, audio))
    return Draft(
        id=name if _optional(value, _ID) else plain_id(name),
        audio=audio,
        text=listed.text,
        answer=answer,
        choices=listed.choices,
        pool=f"answers {category}",
        rule="any",
        owner=audio,
        dataset=_optional(value, ("dataset",)) or dataset,
        modality=_optional(value, ("modality",)),
        category=category,
        sub_category=_optional(value, _SUB_CATEGORY),
        language=_optional(value, ("language",)) or None,
        source_ids=tuple(sorted(found)),
    )


def _choices(value: Mapping[str, Any]) -> tuple[str, ...]:
    """The choices of a list, of a JSON list as text, of "a | b", or of columns choice_a, …."""
    name, given = first_of(value, _CHOICES)
    if isinstance(given, str):
        text = given.strip()
        if text.startswith("["):
            try:
                given = json.loads(text)
            except ValueError:
                raise ValueError(f"its {name} are no JSON list") from None
        else:
            given = [part for part in text.split("|") if part.strip()]
    if given is None:
        keys = [f"{word}_{mark}" for word in ("choice", "option") for mark in _marks()]
        given = [value[key] for key in keys if value.get(key) not in (None, "")]
    if not isinstance(given, list | tuple):
        raise ValueError(f"its {name} must be a list of texts")  # noqa: TRY004 - the same
    label = name or "choices"
    return tuple(text_of({label: entry}, (label,)) for entry in given)


def _marks() -> Iterator[str]:
    yield from _LETTERS
    yield from (str(number) for number in range(1, 27))


def _audio(value: Mapping[str, Any]) -> str:
    audio = text_of(value, _AUDIO)
    folder = _optional(value, ("audio_dir",))
    if folder and "://" not in audio:
        return posixpath.join(folder, audio)
    return audio


def _optional(value: Mapping[str, Any], names: tuple[str, ...]) -> str:
    name, _ = first_of(value, names)
    return text_of(value, (name,)) if name else ""
