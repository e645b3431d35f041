"""The lines of a file as bytes, in order and again by their offset.

Not here: what a line holds. A local file is read from disk both times, so that a million rows with
long thinking need no memory; a zip, a pipe or an object of a bucket is held.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from pydantic_core import from_json

from mmar_jobs.errors import DataError
from mmar_jobs.store import read_uri
from mmar_jobs.store.disk import explained
from mmar_jobs.store.uri import parse_uri
from mmar_jobs.submission import unpack_result

_ZIP_MAGIC: Final = b"PK"
_GZIP_MAGIC: Final = b"\x1f\x8b"
_ARRAY: Final = b"["


class Line(NamedTuple):
    """A line without its end, its number from 1 and its place in the file, in bytes."""

    number: int
    offset: int
    text: bytes

    def value(self) -> Any:
        """What its JSON says, half the time of json.loads; ValueError or RecursionError like it."""
        try:
            return from_json(self.text)
        except ValueError:  # a lone surrogate, which json takes, or a real error, which it explains
            return json.loads(self.text.decode())


class Lines:
    """The lines of one file; `name` is how messages and tables call it."""

    def __init__(self, source: Path | bytes, name: str) -> None:
        self._source = source
        self.name = name

    def __iter__(self) -> Iterator[Line]:
        """Every line that is not blank."""
        offset = 0
        with self._open() as file:
            for number, line in enumerate(file, start=1):
                text = line.strip()
                if text:
                    yield Line(number, offset, text)
                offset += len(line)

    def at(self, offset: int) -> bytes:
        """The line that begins there."""
        with self._open() as file:
            file.seek(offset)
            return file.readline().strip()

    def _open(self) -> BinaryIO:
        if isinstance(self._source, bytes):
            return io.BytesIO(self._source)
        return self._source.open("rb")


def open_lines(uri: str, *, endpoint_url: str | None = None) -> Lines:
    """The lines of a local file, an object in a bucket, or the result in a submission zip.

    DataError where there is no such file, or it is compressed otherwise.
    """
    address = parse_uri(uri)
    if address.scheme != "file":
        return _held(read_uri(uri, endpoint_url=endpoint_url), uri)
    path = Path(address.path)
    if path.is_dir():
        raise DataError(f"{uri} is a folder: name the file")
    if not path.exists():
        raise DataError(f"{uri} does not exist: check the path")
    with explained("read", uri), path.open("rb") as file:
        first = file.read(2)
        is_packed = first in {_ZIP_MAGIC, _GZIP_MAGIC} or first.startswith(_ARRAY)
        if is_packed or not path.is_file():  # a pipe is read once
            return _held(first + file.read(), uri)
    return Lines(path, uri)


def _held(data: bytes, name: str) -> Lines:
    if data.startswith(_GZIP_MAGIC):
        raise DataError(f"{name} is compressed by gzip: unpack it first")
    if data.startswith(_ZIP_MAGIC):
        try:
            data = unpack_result(data)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
    if data.startswith(_ARRAY):
        data = _unroll(data, name)
    return Lines(data, name)


def _unroll(data: bytes, name: str) -> bytes:
    """The rows of one JSON array, a line each."""
    try:
        rows = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is not JSON: {error}") from None
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()
