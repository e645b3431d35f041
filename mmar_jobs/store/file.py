"""A store in a folder of a local or shared file system.

Not here: how a file becomes durable (disk.py). Symbolic links may lead to places within the root
only, and list does not follow them.
"""

import fcntl
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from mmar_jobs.errors import DataError, SettingsError
from mmar_jobs.store import disk
from mmar_jobs.store.base import (
    LEASE_TTL_S,
    RESERVED,
    TEMPORARY,
    Keys,
    Measure,
    Owner,
    check_key,
    check_prefix,
    lease_busy,
    lease_key,
    missing,
    parse_fields,
)

_held_locks: set[FileIO] = set()


class FileStore:
    """A store below one folder, which the first write creates."""

    def __init__(self, root: str) -> None:
        with disk.explained("open", root):
            self._root = Path(root).resolve()
            if self._root.exists() and not self._root.is_dir():
                raise SettingsError(f"the store {root} is a file: choose a folder")

    @property
    def uri(self) -> str:
        """The root as a file:// URI, links resolved."""
        return self._root.as_uri()

    def read(self, key: str) -> bytes:
        """See Store."""
        path = self._locate(key)
        with disk.explained("read", str(path)):
            try:
                return path.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                raise missing(str(path)) from None
            except IsADirectoryError:
                raise DataError(f"{path} is a folder, a file is needed: check the path") from None

    def measure(self, key: str) -> Measure:
        """See Store."""
        if not self.exists(key):
            raise missing(str(self._locate(key)))
        path = self._locate(key)
        with disk.explained("read", str(path)):
            return Measure(disk.digest_file(path), path.stat().st_size)

    def exists(self, key: str) -> bool:
        """See Store."""
        path = self._locate(key)
        with disk.explained("read", str(path)):
            return path.is_file()

    def list(self, prefix: str) -> Keys:
        """See Store; temporary files of writers killed over an hour ago are removed on the way."""
        folder = check_prefix(prefix).rpartition("/")[0]
        top = self._locate(folder) if folder else self._root
        with disk.explained("list", str(top)):
            keys = [path.relative_to(self._root).as_posix() for path in _walk(top)]
        return sorted(key for key in keys if key.startswith(prefix))

    def write(self, key: str, data: bytes) -> None:
        """See Store."""
        path = self._locate(key)
        with disk.explained("write", str(path)):
            disk.replace_file(path, lambda file: _write_all(file, data))

    def write_new(self, key: str, data: bytes) -> bool:
        """See Store."""
        path = self._locate(key)
        with disk.explained("write", str(path)):
            return disk.create_file(path, data)

    def write_parts(self, key: str, parts: Iterable[memoryview]) -> None:
        """See Store."""
        path = self._locate(key)
        with disk.explained("write", str(path)):
            disk.replace_file(path, lambda file: file.writelines(parts))

    def delete(self, key: str) -> None:
        """See Store."""
        path = self._locate(key)
        with disk.explained("delete", str(path)):
            try:
                path.unlink()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return
            disk.sync_folder(path.parent)

    def upload(self, path: Path, key: str) -> None:
        """See Store; the copy is read back and compared."""
        target = self._locate(key)
        disk.require_file(path)
        with disk.explained("write", str(target)):
            disk.copy_file(path, target)

    def download(self, key: str, path: Path) -> None:
        """See Store; the copy is read back and compared."""
        if not self.exists(key):
            raise missing(str(self._locate(key)))
        with disk.explained("write", str(path)):
            disk.remove_stale_temporaries(path.parent)
            disk.copy_file(self._locate(key), path)

    @contextmanager
    def lease(self, key: str, *, ttl_s: float = LEASE_TTL_S) -> Iterator[None]:
        """See Store; the kernel frees the lease with its process, so `ttl_s` plays no part."""
        del ttl_s
        path = self._root / lease_key(key)
        with disk.explained("lock", str(path)):
            disk.make_folder(path.parent)
            lock = FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+")
        with lock:
            with disk.explained("lock", str(path)):
                _take(lock, str(self._root / key))
            _held_locks.add(lock)
            try:
                yield
            finally:
                _held_locks.discard(lock)

    def _locate(self, key: str) -> Path:
        path = self._root / check_key(key)
        try:
            with disk.explained("open", str(path)):
                inside = path.resolve().is_relative_to(self._root)
        except RuntimeError:  # what Python 3.11 and 3.12 raise on a loop of links
            inside = False
        if not inside:
            raise DataError(
                f"{key!r} leads out of {self.uri} by a symbolic link: "
                "name a root that holds its target"
            )
        return path


def _walk(top: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(top, onerror=_raise_unless_gone):
        for name in names:
            path = Path(folder) / name
            if name.startswith(TEMPORARY):
                disk.remove_if_stale(path)
            elif not name.startswith(RESERVED) and not path.is_symlink():
                yield path


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _write_all(file: BinaryIO, data: bytes) -> None:
    file.write(data)


def _take(lock: FileIO, address: str) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise lease_busy(address, Owner.parse(parse_fields(lock.read())), "") from None
    since = datetime.now(UTC).isoformat(timespec="seconds")
    lock.truncate(0)
    lock.write(Owner(platform.node(), os.getpid(), since).render())


def _close_inherited_locks() -> None:
    for lock in _held_locks:
        lock.close()
    _held_locks.clear()


# A forked data worker that outlives its killed parent would otherwise keep the parent's lease.
os.register_at_fork(after_in_child=_close_inherited_locks)
