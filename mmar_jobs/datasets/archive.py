"""Unpacking archives from strangers: regular files below one folder, within stated limits.

Not here: downloading them. Refused, each by name: paths that leave the folder, links, devices,
names given twice, more files or bytes than allowed, and ratios that only bombs have. What is
counted is what comes out of the decompressor, never what an archive says of itself; nothing reaches
the folder before the whole archive was read. tar, tar.gz and zip, told apart by their first bytes.
"""

import gzip
import io
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from mmar_jobs.errors import DataError

_BLOCK: Final = 1 << 20
_HEADER_BYTES: Final = 1 << 20  # a name, its pax records and tarfile's read-ahead are far smaller
_MAX_NAME_BYTES: Final = 255
_RATIO_FREE_BYTES: Final = 64 << 20
_ENCRYPTED: Final = 0x1


class Limits(NamedTuple):
    """What one archive may hold; `ratio` is unpacked to packed bytes, judged above 64 MiB."""

    num_files: int = 1_000_000
    total_bytes: int = 256 << 30
    file_bytes: int = 4 << 30
    ratio: float = 100.0


class Unpacked(NamedTuple):
    """What came out of one archive."""

    num_files: int
    size_bytes: int


class _Refused(Exception):
    """Why an archive is not unpacked; becomes a DataError that names it."""


class _Tally:
    """Counts what was unpacked against the limits."""

    def __init__(self, limits: Limits, packed_bytes: int) -> None:
        self._limits = limits
        self._packed_bytes = max(1, packed_bytes)
        self.num_files = 0
        self.file_bytes = 0
        self._num_bytes = 0

    def add_file(self) -> None:
        self.num_files += 1
        if self.num_files > self._limits.num_files:
            raise _Refused(f"holds more than {self._limits.num_files} files")

    def add_bytes(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        if self._num_bytes > self._limits.total_bytes:
            raise _Refused(f"unpacks to more than {self._limits.total_bytes} bytes")
        if self._num_bytes > max(_RATIO_FREE_BYTES, self._limits.ratio * self._packed_bytes):
            raise _Refused(f"unpacks to more than {self._limits.ratio:g} times its size")


class _Metered(io.RawIOBase):
    """A decompressed stream that ends in an error where more is read than was allowed.

    tarfile reads a header's long name into memory whatever length it claims, so each header gets an
    allowance of its own.
    """

    def __init__(self, stream: Any, tally: _Tally) -> None:
        self._stream = stream
        self._tally = tally
        self._left = 0

    def allow(self, num_bytes: int) -> None:
        self._left = num_bytes + _HEADER_BYTES

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise _Refused("has a header of more than 1 MiB")
        self._tally.add_bytes(len(data))
        return data


def unpack(
    archive: Path,
    folder: Path,
    *,
    limits: Limits | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Unpacked:
    """Unpack `archive` into `folder`, beside or over what is there; `advance` counts files.

    Raises DataError that says what is wrong; then nothing of the archive is in the folder.
    """
    staging = folder / f".unpacking-{archive.name}"
    shutil.rmtree(staging, ignore_errors=True)
    tally = _Tally(limits or Limits(), archive.stat().st_size)
    try:
        staging.mkdir(parents=True)
        _unpack(archive, _Target(staging, tally, limits or Limits(), advance))
        _move_files(staging, folder)
    except _Refused as error:
        raise DataError(f"archive {archive.name} is refused: it {error}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError, zipfile.BadZipFile) as error:
        reason = str(error) or type(error).__name__
        raise DataError(
            f"archive {archive.name} is broken ({reason}): delete it and fetch it again"
        ) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Unpacked(tally.num_files, tally.file_bytes)


class _Target:
    """Where members go: an empty folder that nobody else writes to."""

    def __init__(
        self, folder: Path, tally: _Tally, limits: Limits, advance: Callable[[int], None]
    ) -> None:
        self._folder = folder
        self._limits = limits
        self._advance = advance
        self.tally = tally

    def write(self, name: str, blocks: Iterator[bytes]) -> None:
        parts = safe_parts(name)
        if not parts:
            raise _Refused(f"holds the unsafe path {name[:80]!r}")
        path = self._folder.joinpath(*parts)
        self.tally.add_file()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write_new(path, blocks, name)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            raise _Refused(f"holds {name!r} twice, or as file and folder") from None
        self._advance(1)

    def _write_new(self, path: Path, blocks: Iterator[bytes], name: str) -> None:
        num_bytes = 0
        with path.open("xb") as file:
            for block in blocks:
                num_bytes += len(block)
                if num_bytes > self._limits.file_bytes:
                    raise _Refused(f"holds {name!r} of more than {self._limits.file_bytes} bytes")
                file.write(block)
        self.tally.file_bytes += num_bytes


def safe_parts(name: str) -> tuple[str, ...]:
    """The parts of a relative path that a stranger gave; empty where it is not safe to write to."""
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    is_unsafe = (
        not parts
        or name.startswith("/")
        or ".." in parts
        or "\\" in name
        or any(not character.isprintable() for character in name)
        or parts[0][1:2] == ":"
        or any(len(os.fsencode(part)) > _MAX_NAME_BYTES for part in parts)
    )
    return () if is_unsafe else parts


def _unpack(archive: Path, target: _Target) -> None:
    with archive.open("rb") as file:
        start = file.read(4)
    if start[:2] == b"PK":
        _unpack_zip(archive, target)
    elif start[:2] == b"\x1f\x8b":
        with gzip.open(archive, "rb") as stream:
            _unpack_tar(stream, target)
    elif tarfile.is_tarfile(archive):
        with archive.open("rb") as stream:
            _unpack_tar(stream, target)
    else:
        raise _Refused("is none of tar, tar.gz and zip")


def _unpack_tar(stream: Any, target: _Target) -> None:
    metered = _Metered(stream, target.tally)
    metered.allow(0)
    tar: Any
    with tarfile.open(fileobj=metered, mode="r|", encoding="utf-8") as tar:
        while (member := tar.next()) is not None:
            if not member.isdir():
                if not member.isreg() or member.issparse():
                    raise _Refused(f"holds {member.name[:80]!r}, which is a {_kind(member)}")
                metered.allow(member.size)
                with _opened(tar, member) as file:
                    target.write(member.name, _blocks(file))
            # What tarfile remembers of each member would grow with their number.
            tar.members = []
            metered.allow(0)


@contextmanager
def _opened(tar: Any, member: tarfile.TarInfo) -> Iterator[IO[bytes]]:
    file = tar.extractfile(member)
    with file:
        yield file


def _kind(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return "link"
    return "device" if member.isdev() else "special file"


def _unpack_zip(archive: Path, target: _Target) -> None:
    with zipfile.ZipFile(archive) as zipped:
        for member in zipped.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            if member.is_dir():
                continue
            if kind not in (0, stat.S_IFREG):
                what = "link" if kind == stat.S_IFLNK else "special file"
                raise _Refused(f"holds {member.filename[:80]!r}, which is a {what}")
            if member.flag_bits & _ENCRYPTED:
                raise _Refused(f"holds {member.filename[:80]!r}, which is encrypted")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise _Refused(f"packs {member.filename[:80]!r} in a way that is not supported")
            with zipped.open(member) as file:
                target.write(member.filename, _counted(_blocks(file), target.tally))


def _counted(blocks: Iterator[bytes], tally: _Tally) -> Iterator[bytes]:
    for block in blocks:
        tally.add_bytes(len(block))
        yield block


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(_BLOCK):
        yield block


def _move_files(staging: Path, folder: Path) -> None:
    for path in sorted(staging.rglob("*")):
        if path.is_file():
            target = folder / path.relative_to(staging)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
