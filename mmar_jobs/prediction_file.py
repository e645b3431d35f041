"""The rows of a prediction file, a submission zip or JSONL: each checked, each id once.

Not here: what a submission must be (submission.py), and a million rows at once
(analysis/outcomes.py).
"""

from typing import Any

from mmar_jobs.errors import DataError
from mmar_jobs.lines import Line, open_lines


def read_rows(uri: str) -> dict[str, dict[str, Any]]:
    """Every row by its id, in order; DataError for one that is none, and for a second of an id."""
    rows: dict[str, dict[str, Any]] = {}
    for line in open_lines(uri):
        row = parse_row(line, uri)
        if row["id"] in rows:
            raise duplicate(line, uri, row["id"])
        rows[row["id"]] = row
    if not rows:
        raise DataError(f"{uri} has no predictions: give JSONL rows or a submission zip")
    return rows


def parse_row(line: Line, name: str) -> dict[str, Any]:
    """One prediction row, its id and fields of the right kind; DataError names what is wrong."""
    try:
        row = line.value()
    except UnicodeDecodeError:
        raise DataError(f"{name} line {line.number}: is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} line {line.number}: is not JSON: {error}") from None
    if not isinstance(row, dict) or not isinstance(row.get("id"), str):
        raise DataError(f"{name} line {line.number}: is not a prediction: it has no id")
    for field in ("answer_prediction", "thinking_prediction"):
        if not isinstance(row.get(field), str | None):
            raise DataError(f"{name} line {line.number}: {field} must be text")
    return row


def duplicate(line: Line, name: str, key: str) -> DataError:
    """What is raised for the second row of an id."""
    return DataError(f"{name} line {line.number}: duplicate id {key!r}: keep one line of it")
