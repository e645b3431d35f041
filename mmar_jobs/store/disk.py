"""Durable changes to a local disk: a temporary file, fsync, one atomic step, fsync of the folder.

Not here: keys, roots and leases (file.py). Both stores use it, for downloads from S3 land here.
"""

import errno
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from mmar_jobs.errors import DataError, MmarError, SettingsError, TryAgain
from mmar_jobs.store.base import TEMPORARY

STALE_AFTER_S: Final = 3600.0  # a live writer touches its temporary file far more often
COPY_BYTES: Final = 1 << 20
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_REFUSED: Final = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOTDIR,
        errno.ENOENT,
        errno.EEXIST,
        errno.EISDIR,
        errno.ENAMETOOLONG,
        errno.ELOOP,
        errno.EFBIG,
        errno.EINVAL,
        errno.ENOLCK,
        errno.ENOTSUP,
    }
)


@contextmanager
def explained(verb: str, where: str) -> Iterator[None]:
    """Turn an OSError of the block into SettingsError, or TryAgain where it may pass."""
    try:
        yield
    except OSError as error:
        raise _explain(error, verb, where) from error


def replace_file(target: Path, fill: Callable[[BinaryIO], None]) -> None:
    """Let `fill` write a temporary file, then put it at `target`; raises OSError as it comes."""
    make_folder(target.parent)
    with _temporary(target.parent) as file:
        fill(file)
        _sync(file)
        Path(file.name).replace(target)
    sync_folder(target.parent)


def create_file(target: Path, data: bytes) -> bool:
    """Put `data` at `target` unless something is there; raises OSError as it comes."""
    if target.exists():
        return False
    make_folder(target.parent)
    with _temporary(target.parent) as file:
        file.write(data)
        _sync(file)
        try:
            # A hard link never replaces and shows all content at once; O_EXCL shows an empty file.
            target.hardlink_to(file.name)
        except FileExistsError:
            return False
    sync_folder(target.parent)
    return True


def copy_file(source: Path, target: Path) -> None:
    """Copy `source` to `target` atomically; what landed is read back and compared by SHA-256."""
    copied = hashlib.sha256()

    def fill(file: BinaryIO) -> None:
        with source.open("rb") as reader:
            while block := reader.read(COPY_BYTES):
                copied.update(block)
                file.write(block)
        file.flush()
        if digest_file(Path(file.name)) != copied.hexdigest():
            raise TryAgain(
                f"the copy of {source} to {target} differs from it: run the same command again"
            )

    replace_file(target, fill)


def digest_file(path: Path) -> str:
    """SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_file(path: Path) -> None:
    """DataError unless `path` is a regular file."""
    if not path.is_file():
        raise DataError(f"{path} is not a file: nothing can be uploaded from there; check the path")


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents so that they survive a power cut."""
    absent = []
    while not folder.is_dir():
        absent.append(folder)
        folder = folder.parent
    for path in reversed(absent):
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make names created in or removed from `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_stale_temporaries(folder: Path) -> None:
    """Remove what killed writers left directly in `folder`."""
    for path in folder.glob(f"{TEMPORARY}*"):
        remove_if_stale(path)


def remove_if_stale(path: Path) -> None:
    """Remove a killed writer's temporary file; a live one's is younger than STALE_AFTER_S."""
    with suppress(OSError):
        if time.time() - path.stat().st_mtime > STALE_AFTER_S:
            path.unlink()


@contextmanager
def _temporary(folder: Path) -> Iterator[BinaryIO]:
    path = folder / f"{TEMPORARY}{uuid.uuid4().hex}"
    try:
        with path.open("xb") as file:
            yield file
    finally:
        path.unlink(missing_ok=True)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _explain(error: OSError, verb: str, where: str) -> MmarError:
    if error.errno in _FULL:
        return TryAgain(
            f"disk full: cannot {verb} {where}: free space, then run the same command again, "
            "finished work is kept"
        )
    reason = (error.strerror or type(error).__name__).lower()
    if error.errno in _REFUSED:
        return SettingsError(
            f"cannot {verb} {where}: {reason}: correct its permissions or choose another place"
        )
    return TryAgain(f"cannot {verb} {where}: {reason}: run the same command again")
