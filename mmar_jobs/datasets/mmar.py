"""Rows of question files become Question records, or BadRows that say why not.

Not here: reading files, audio, splits. Three formats are told apart row by row by their keys: the
benchmark's MMAR-meta (also as one JSON array), training rows with the choices inside the question's
text, and this project's own Question.
"""

import json
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from pydantic import ValidationError

from mmar_jobs.datasets.listed_choices import Listed, match_answer, take_choices
from mmar_jobs.datasets.source_ids import source_ids
from mmar_jobs.records import Question, Record

BENCHMARK_MARK: Final = "benchmark_item"
_BOM: Final = "\ufeff"


class BadRow(Record):
    """A row that is no question: its place in the file from 1, its id if it has one, and why."""

    line_number: int
    id: str | None
    reason: str


def parse_questions(lines: Iterable[bytes | str], source: str) -> Iterator[Question | BadRow]:
    """Parse a question file line by line, in order, without ever raising for what a row holds.

    `source` becomes the data set's name where a row has none. Empty lines are skipped. A file that
    is one JSON array is read whole, and its rows are numbered instead of its lines.
    """
    return (row for _, row in parse_numbered(lines, source))


def parse_numbered(
    lines: Iterable[bytes | str], source: str
) -> Iterator[tuple[int, Question | BadRow]]:
    """Like parse_questions, each row with its place in the file from 1."""
    first_line_by_id: dict[str, int] = {}
    for line_number, row in _rows(lines):
        parsed = row if isinstance(row, BadRow) else _question(row, line_number, source)
        if isinstance(parsed, Question):
            first = first_line_by_id.get(parsed.id)
            if first is None:
                first_line_by_id[parsed.id] = line_number
            else:
                parsed = _bad(line_number, parsed.id, f"its id is already that of line {first}")
        yield line_number, parsed


def _rows(lines: Iterable[bytes | str]) -> Iterator[tuple[int, Any]]:
    numbered = enumerate(lines, start=1)
    for line_number, line in numbered:
        try:
            text = _text_of(line)
            if text == "[" and line_number == 1:
                text = "\n".join([text, *(_text_of(line) for _, line in numbered)])
            row = json.loads(text) if text else None
            if isinstance(row, list) and line_number == 1:
                yield from enumerate(row, start=1)
            elif text:
                yield line_number, row
        except UnicodeDecodeError:
            yield line_number, _bad(line_number, None, "is not UTF-8 text")
        except (ValueError, RecursionError) as error:
            yield line_number, _bad(line_number, None, f"is not JSON: {error}")


def _text_of(line: bytes | str) -> str:
    return (line.decode() if isinstance(line, bytes) else line).removeprefix(_BOM).strip()


def _bad(line_number: int, key: str | None, reason: str) -> BadRow:
    return BadRow(line_number=line_number, id=key, reason=reason)


def _question(row: object, line_number: int, source: str) -> Question | BadRow:
    if not isinstance(row, dict):
        return _bad(line_number, None, "is not a JSON object")
    key = row.get("id")
    # JSON may hold half a surrogate pair, which no record can.
    shown = str(key).encode(errors="replace").decode() if isinstance(key, str | int) else None
    reason = benchmark_mark(row)
    if reason:
        return _bad(line_number, shown, reason)
    try:
        return _reader(row)(row, source)
    except ValidationError as error:
        return _bad(line_number, shown, _sentence(error))
    except ValueError as error:
        return _bad(line_number, shown, str(error))


def benchmark_mark(row: Mapping[str, Any]) -> str:
    """Why a row may never become a question; empty where it may.

    `analyze --export` marks what it takes from a benchmark, so that nothing trains on it.
    """
    if not row.get(BENCHMARK_MARK):
        return ""
    return f"is marked {BENCHMARK_MARK}: an exported item of the benchmark, never a question to use"


def _reader(row: Mapping[str, Any]) -> Callable[[Mapping[str, Any], str], Question]:
    if "text" in row and "audio" in row:
        return _own
    if "audio_path" in row:
        return _benchmark
    if "sound" in row:
        return _training
    raise ValueError(
        "is none of the known formats: needs audio_path (benchmark), sound (training) or "
        "audio and text (own questions)"
    )


def _own(row: Mapping[str, Any], source: str) -> Question:
    question = Question.model_validate(row)
    known = {"audio": _audio(question.audio), "dataset": question.dataset or source}
    return question.model_copy(update=known)


def _benchmark(row: Mapping[str, Any], source: str) -> Question:
    choices = row.get("choices")
    if not isinstance(choices, list) or not choices:
        raise ValueError("has no choices: needs a list of their texts")
    texts = (_as_text("choice", choice) for choice in choices)
    # Four of the real 1,000 rows end their choices with an empty one, which nobody can answer.
    listed = Listed(_text(row, "question"), tuple(text for text in texts if text.strip()), ())
    return _built(row, listed, _audio(_text(row, "audio_path")), source)


def _training(row: Mapping[str, Any], source: str) -> Question:
    listed = take_choices(_text(row, "question"))
    if not listed.choices:
        raise ValueError('has no choices: its question has no lines below "Choices:"')
    audio = _audio(posixpath.join(_text(row, "audio_dir"), _text(row, "sound")))
    return _built(row, listed, audio, source)


def _built(row: Mapping[str, Any], listed: Listed, audio: str, source: str) -> Question:
    key = _text(row, "id")
    if row.get("start_s"):
        raise ValueError(
            f"its clip starts at {row['start_s']} s of {audio}, and files are heard from their "
            "beginning: cut it out first"
        )
    answer = row.get("answer")
    if answer is not None:
        answer = _as_text("answer", answer)
        matched = match_answer(answer, listed)
        # Without a match the record's own check names what is wrong, duplicates first.
        answer = answer if matched is None else matched
    return Question(
        id=key,
        audio=audio,
        text=listed.text,
        choices=listed.choices,
        answer=answer,
        dataset=_optional(row, "dataset") or source,
        modality=_optional(row, "modality"),
        category=_optional(row, "category"),
        sub_category=_optional(row, "sub-category") or _optional(row, "sub_category"),
        language=_optional(row, "language") or None,
        source_ids=source_ids(_optional(row, "url"), key, audio),
    )


def _text(row: Mapping[str, Any], field: str) -> str:
    if row.get(field) is None:
        raise ValueError(f"has no {field}")
    text = _as_text(field, row[field])
    if not text.strip():
        raise ValueError(f"its {field} is empty")
    return text


def _optional(row: Mapping[str, Any], field: str) -> str:
    return "" if row.get(field) is None else _as_text(field, row[field])


def _as_text(name: str, value: object) -> str:
    """Accept whole numbers beside text: counting questions often have them as answers."""
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"its {name} must be text, not {json.dumps(value)[:40]}")


def _audio(path: str) -> str:
    """Normalise a path relative to the audio root; URIs stay as they are."""
    if "://" in path:
        return path
    normal = posixpath.normpath(path)
    if normal == ".." or normal.startswith(("/", "../")):
        raise ValueError(f"its audio {path!r} is outside the audio root: use a path in it or a URI")
    return normal


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    field = ".".join(str(part) for part in first["loc"])
    return f"its {field} is wrong: {first['msg']}"
