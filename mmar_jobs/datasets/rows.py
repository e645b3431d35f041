"""Rows of foreign files: JSON lines, JSON arrays, CSV, TSV and parquet, as plain dictionaries.

Not here: what a row means. The only importer of `datasets`, for parquet alone. A row that is no
object and a line that is no JSON are named by number; they never stop the others.
"""

import csv
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple

from mmar_jobs.datasets.mmar import benchmark_mark
from mmar_jobs.errors import DataError, SettingsError

_BOM: Final = "\ufeff"
_MAX_FIELD_BYTES: Final = 1 << 24
SUFFIXES: Final = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


class Row(NamedTuple):
    """One row, its number in the file from 1, or why it is none."""

    number: int
    value: Mapping[str, Any]
    problem: str = ""


def read_rows(path: Path) -> Iterator[Row]:
    """Read a file of rows by its suffix; raises DataError where the file as a whole is none."""
    if path.suffix not in SUFFIXES:
        raise SettingsError(f"{path} is no file of rows: needs one of {', '.join(SUFFIXES)}")
    try:
        if path.suffix == ".parquet":
            yield from _read_parquet(path)
        elif path.suffix in (".csv", ".tsv"):
            yield from _read_csv(path, "," if path.suffix == ".csv" else "\t")
        else:
            yield from _read_json(path)
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text: convert it") from None
    except FileNotFoundError:
        raise SettingsError(f"{path} does not exist: correct the path") from None


def _read_json(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        is_array = file.read(1024).lstrip(_BOM).lstrip()[:1] == "["
        file.seek(0)
        if is_array:
            yield from _read_array(path, file.read().removeprefix(_BOM))
            return
        for number, line in enumerate(file, start=1):
            text = line.removeprefix(_BOM).strip()
            if not text:
                continue
            try:
                yield _row(number, json.loads(text))
            except (ValueError, RecursionError) as error:
                yield Row(number, {}, f"is not JSON: {error}")


def _read_array(path: Path, text: str) -> Iterator[Row]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from None
    for number, value in enumerate(values, start=1):
        yield _row(number, value)


def _row(number: int, value: object) -> Row:
    if not isinstance(value, dict):
        return Row(number, {}, "is not an object of named fields")
    reason = benchmark_mark(value)
    return Row(number, {} if reason else value, reason)


def _read_csv(path: Path, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(_MAX_FIELD_BYTES)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True, skipinitialspace=True)
        if not reader.fieldnames:
            raise DataError(f"{path} is empty: its first line must name the columns")
        try:
            for number, value in enumerate(reader, start=2):
                if None in value or None in value.values():
                    yield Row(number, {}, f"has not {len(reader.fieldnames)} columns")
                else:
                    yield _row(number, value)
        except csv.Error as error:
            raise DataError(f"{path} line {reader.line_num}: {error}") from None


def _read_parquet(path: Path) -> Iterator[Row]:
    try:
        datasets: Any = import_module("datasets")  # heavy, untyped, and of the extra `data`
    except ModuleNotFoundError:
        raise SettingsError("parquet is read by datasets: install mmar-jobs[data]") from None
    with tempfile.TemporaryDirectory() as cache:
        try:
            loaded = datasets.load_dataset(
                "parquet", data_files=str(path), split="train", streaming=True, cache_dir=cache
            )
            for number, value in enumerate(loaded.decode(enable=False), start=1):
                yield _row(number, value)
        except (datasets.exceptions.DatasetGenerationError, OSError, ValueError) as error:
            reason = str(error).splitlines()[0][:160]
            raise DataError(f"{path} is not a readable parquet file ({reason})") from None


def first_of(row: Mapping[str, Any], names: Sequence[str]) -> tuple[str, Any]:
    """The first of `names` that the row fills, and its value; ("", None) where it fills none."""
    for name in names:
        value = row.get(name)
        if value is not None and value != "":
            return name, value
    return "", None


def text_of(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """The text of the first field filled of `names`; raises ValueError where there is none."""
    name, value = first_of(row, names)
    if not name:
        raise ValueError(f"has no {' or '.join(names)}")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        kind = type(value).__name__
        raise ValueError(f"its {name} must be text, not {kind}")  # noqa: TRY004 - a row's fault
    text = f"{value:g}" if isinstance(value, float) else str(value)
    if not text.strip():
        raise ValueError(f"its {name} is empty")
    return text.strip()


def number_of(name: str, value: object) -> float:
    """A finite number, also as text; raises ValueError that names the field."""
    try:
        number = float(value) if isinstance(value, str | int | float) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"its {name} {str(value)[:40]!r} is not a number")
    return number


def seconds_of(row: Mapping[str, Any], names: Sequence[str]) -> float | None:
    """Seconds of the first field filled of `names`: a number, or hh:mm:ss; None for no field."""
    name, value = first_of(row, names)
    if not name:
        return None
    try:
        parts = [float(part) for part in str(value).strip().split(":")]
    except ValueError:
        parts = []
    if not 1 <= len(parts) <= 3 or any(part < 0 or not math.isfinite(part) for part in parts):
        raise ValueError(f"its {name} {str(value)[:40]!r} is no time: needs seconds or hh:mm:ss")
    total = 0.0
    for part in parts:
        total = total * 60 + part
    return total
