"""The benchmark's submission file as bytes: pack it, unpack it, name every problem of one.

Not here: files and stores; the caller reads and writes the bytes. Nothing is repaired: a wrong
submission is refused with its reasons.
"""

import io
import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from mmar_jobs.errors import DataError, GateError
from mmar_jobs.records import Prediction, Question

RESULT_NAME: Final = "result.jsonl"
MAX_THINKING_CHARACTERS: Final = 9_999
# 1,000 items of 10,000 four-byte characters are 40 MB; beyond this it is no submission but a bomb.
MAX_RESULT_BYTES: Final = 64 * 1024 * 1024
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_UNIX: Final = 3


class _Row(NamedTuple):
    """One line of a result file, or what is wrong with it."""

    line_number: int
    row: dict[str, Any]
    problem: str


def limit_thinking(thinking: str) -> str:
    """Longest verbatim beginning that the benchmark accepts (fewer than 10,000 characters)."""
    return thinking[:MAX_THINKING_CHARACTERS]


def num_over_long(predictions: Sequence[Prediction]) -> int:
    """Count the predictions whose thinking `pack` cuts."""
    return sum(len(row.thinking_prediction) > MAX_THINKING_CHARACTERS for row in predictions)


def pack(predictions: Sequence[Prediction], questions: Sequence[Question]) -> bytes:
    """Build the submission zip, the same bytes for the same answers in whatever order.

    Over-long thinking is cut by `limit_thinking`; the rules want it as emitted, so nothing is added
    to mark the cut: count it with `num_over_long`. GateError where the result would have a problem.
    """
    place = {question.id: i for i, question in enumerate(questions)}
    ordered = sorted(predictions, key=lambda row: (place.get(row.id, len(place)), row.id))
    lines = [
        json.dumps(
            {
                "id": row.id,
                "thinking_prediction": limit_thinking(row.thinking_prediction),
                "answer_prediction": row.answer_prediction,
            }
        )
        for row in ordered
    ]
    data = _zip_of("".join(f"{line}\n" for line in lines).encode())
    found = problems(data, questions)
    if found:
        raise GateError(f"the submission would have {len(found)} problems, first: {found[0]}")
    return data


def problems(data: bytes, questions: Sequence[Question]) -> list[str]:
    """Name every problem of a submission zip, one sentence each; empty means it is right."""
    try:
        result = unpack_result(data)
    except DataError as error:
        return [str(error)]
    choices_by_id = {question.id: question.choices for question in questions}
    found: list[str] = []
    counts: Counter[str] = Counter()
    for line_number, row, problem in _rows(result):
        if problem:
            found.append(problem)
            continue
        found += [f"line {line_number}: {text}" for text in _row_problems(row, choices_by_id)]
        if isinstance(row.get("id"), str):
            counts[row["id"]] += 1
    found += [f"duplicate id {key!r}: {num} lines" for key, num in counts.items() if num > 1]
    found += [f"missing id {key!r}" for key in choices_by_id if key not in counts]
    return found


def _zip_of(result: bytes) -> bytes:
    # Stored, not deflated: deflate's output differs between zlib builds, stored bytes do not.
    info = zipfile.ZipInfo(RESULT_NAME, date_time=_EPOCH)
    info.compress_type = zipfile.ZIP_STORED
    info.create_system = _UNIX
    info.external_attr = 0o100644 << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(info, result)
    return buffer.getvalue()


def unpack_result(data: bytes) -> bytes:
    """Take the one file out of a submission zip; DataError says why it cannot be had."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            if names != [RESULT_NAME]:
                raise DataError(
                    f"the zip must hold {RESULT_NAME} at top level and nothing else, it holds "
                    f"{len(names)} files: {names[:5]}"
                )
            method = archive.getinfo(RESULT_NAME).compress_type
            if method not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise DataError(f"{RESULT_NAME} is packed by method {method}: use deflate or none")
            # The size in the directory may lie, so the limit is on what really comes out.
            with archive.open(RESULT_NAME) as member:
                result = member.read(MAX_RESULT_BYTES + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        # zipfile lets ValueError through for offsets and names that cannot be.
        raise DataError(f"not a readable zip file: {error}") from error
    except (RuntimeError, NotImplementedError) as error:
        raise DataError(f"{RESULT_NAME} is encrypted or oddly compressed: {error}") from error
    if len(result) > MAX_RESULT_BYTES:
        raise DataError(f"{RESULT_NAME} unpacks to more than {MAX_RESULT_BYTES} bytes")
    return result


def _rows(result: bytes) -> Iterator[_Row]:
    """Read lines of JSON objects; empty lines are a problem except at the end."""
    lines = result.rstrip().split(b"\n") if result.strip() else []
    for line_number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line.decode(), object_pairs_hook=_object)
        except UnicodeDecodeError:
            yield _Row(line_number, {}, f"line {line_number}: is not UTF-8 text")
        except (ValueError, RecursionError) as error:
            yield _Row(line_number, {}, f"line {line_number}: is not JSON: {error}")
        else:
            is_object = isinstance(row, dict)
            problem = "" if is_object else f"line {line_number}: is not a JSON object"
            yield _Row(line_number, row if is_object else {}, problem)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise ValueError("an object names a field twice")
    return row


def _row_problems(row: dict[str, Any], choices_by_id: dict[str, tuple[str, ...]]) -> Iterator[str]:
    key, thinking, answer = (
        row.get(field) for field in ("id", "thinking_prediction", "answer_prediction")
    )
    if not isinstance(key, str):
        yield "has no id, or one that is not text"
    elif key not in choices_by_id:
        yield f"unknown id {key!r}"
    if not isinstance(thinking, str):
        yield f"id {key!r} has no thinking_prediction, or one that is not text"
    elif len(thinking) > MAX_THINKING_CHARACTERS:
        yield (
            f"id {key!r} has thinking_prediction of {len(thinking)} characters, at most "
            f"{MAX_THINKING_CHARACTERS} are allowed"
        )
    if not isinstance(answer, str):
        yield f"id {key!r} has no answer_prediction, or one that is not text"
    elif isinstance(key, str) and answer not in choices_by_id.get(key, (answer,)):
        yield f"id {key!r} has answer_prediction {answer!r}, which is not one of its choices"
