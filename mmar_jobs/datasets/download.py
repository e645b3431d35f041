"""Files over HTTP, whole or not at all: resumed by range, checked by size and digest, in parallel.

Not here: which files (hub.py, zenodo.py), unpacking. A file under way is NAME.part beside a note of
its address and etag; it gets its name when size and digest are right. A receipt of each finished
file lets the next run skip it without reading it. Tokens go to the first host only: httpx drops
them where a redirect leads elsewhere.
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import httpx

from mmar_jobs.datasets.archive import safe_parts
from mmar_jobs.errors import DataError
from mmar_jobs.progress import Advance
from mmar_jobs.records import Record

STATE: Final = ".fetch"
TIMEOUT_S: Final = 60.0
_BLOCK: Final = 1 << 20
_LONGEST_WAIT_S: Final = 60.0
_TRANSIENT: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Wanted:
    """A file to have at `path` below the folder; sizes and digests where its host tells them."""

    path: str
    url: str
    size_bytes: int | None = None
    sha256: str | None = None
    md5: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class Fetched(Record):
    """A file that is there and right; `url` is without credentials and query."""

    path: str
    url: str
    size_bytes: int
    sha256: str
    etag: str = ""


class Missing(Record):
    """Something that could not be had, and why; what `is_transient` may be had later."""

    what: str
    where: str
    reason: str
    is_transient: bool = False


class _Failed(Exception):
    """One attempt failed; `retry_after_s` is None where another one would fail, too."""

    def __init__(self, reason: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Patience:
    """How often a file is tried again, and the first wait in seconds, which doubles."""

    num_retries: int = 5
    first_wait_s: float = 1.0

    def waits(self) -> Iterator[float]:
        """The wait before each further attempt."""
        for attempt in range(self.num_retries):
            yield min(_LONGEST_WAIT_S, self.first_wait_s * 2**attempt)


def download_all(
    wanted: Sequence[Wanted],
    folder: Path,
    *,
    num_workers: int,
    patience: Patience,
    advance: Advance = lambda _: None,
) -> tuple[list[Fetched], list[Missing]]:
    """Fetch every file; what cannot be had is named, and does not stop the others.

    `advance` counts bytes as they arrive, with those that are there already. Raises OSError as the
    disk gives it.
    """

    def fetch(file: Wanted) -> Fetched | Missing:
        return download(file, folder, client, patience=patience, advance=stoppable(advance, stop))

    with _client() as client, interruptible_pool(num_workers) as (pool, stop):
        results = list(pool.map(fetch, wanted))
    fetched = [result for result in results if isinstance(result, Fetched)]
    return fetched, [result for result in results if isinstance(result, Missing)]


def _client() -> httpx.Client:
    timeout = httpx.Timeout(TIMEOUT_S)
    return httpx.Client(timeout=timeout, follow_redirects=True, max_redirects=10)


class Stopped(Exception):
    """A thread ends early, for the program was interrupted; what it has on disk stays."""


def stoppable(advance: Advance, stop: threading.Event) -> Advance:
    """An `advance` that raises Stopped once `stop` is set."""

    def checked(num_done: int) -> None:
        if stop.is_set():
            raise Stopped
        advance(num_done)

    return checked


@contextmanager
def interruptible_pool(num_workers: int) -> Iterator[tuple[ThreadPoolExecutor, threading.Event]]:
    """Threads, and an event that tells them to stop when the block is left by an exception.

    Without it Ctrl-C would wait for the end of every download under way.
    """
    stop = threading.Event()
    pool = ThreadPoolExecutor(max_workers=num_workers)
    try:
        yield pool, stop
    except BaseException:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown()


def download(
    file: Wanted,
    folder: Path,
    client: httpx.Client,
    *,
    patience: Patience,
    advance: Advance = lambda _: None,
) -> Fetched | Missing:
    """Fetch one file, going on where an earlier attempt or run was cut off."""
    if not safe_parts(file.path):
        raise DataError(f"the host names a file {file.path[:80]!r}, which is not safe to write")
    target = _Target(folder, file)
    if (known := target.known()) is not None:
        advance(known.size_bytes)
        return known
    waits = patience.waits()
    while True:
        try:
            return _attempt(client, target, advance)
        except _Failed as failure:
            wait_s = None if failure.retry_after_s is None else next(waits, None)
            if wait_s is None:
                return Missing(
                    what=file.path,
                    where=bare_url(file.url),
                    reason=str(failure),
                    is_transient=failure.retry_after_s is not None,
                )
            _wait(min(_LONGEST_WAIT_S, max(wait_s, failure.retry_after_s or 0.0)), advance)


def _wait(wait_s: float, advance: Advance) -> None:
    """Wait in short naps, so that an interruption is noticed."""
    until_s = time.monotonic() + wait_s
    while (left_s := until_s - time.monotonic()) > 0:
        advance(0)
        time.sleep(min(0.2, left_s))


class _Target:
    """Where one file goes: its name, its part, the note on the part and the receipt."""

    def __init__(self, folder: Path, file: Wanted) -> None:
        self.file = file
        self.path = folder / file.path
        key = hashlib.sha256(file.path.encode()).hexdigest()[:24]
        state = folder / STATE
        self.part = state / f"{key}.part"
        self._note = state / f"{key}.part.json"
        self._receipt = state / f"{key}.json"
        state.mkdir(parents=True, exist_ok=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def known(self) -> Fetched | None:
        """The finished file of an earlier run, if it is still what its receipt says."""
        note = _read_json(self._receipt)
        if not self.path.is_file() or note.get("url") != self.file.url:
            return None
        status = self.path.stat()
        fetched = Fetched.model_validate(note["fetched"])
        if status.st_size != fetched.size_bytes:
            return None
        if status.st_mtime_ns != note["mtime_ns"] and _digests(self.path)[0] != fetched.sha256:
            return None
        return fetched

    def begun(self) -> tuple[int, str]:
        """How much of the file an earlier attempt left, and the etag that it belongs to."""
        note = _read_json(self._note)
        etag = str(note.get("etag", ""))
        is_checkable = bool(etag or self.file.sha256 or self.file.md5)
        if note.get("url") != self.file.url or not is_checkable or not self.part.is_file():
            return 0, ""
        return self.part.stat().st_size, etag

    def begin(self, etag: str) -> None:
        """Note what the part will belong to."""
        self.part.unlink(missing_ok=True)
        write_json(self._note, {"url": self.file.url, "etag": etag})

    def finish(self, etag: str) -> Fetched:
        """Check the part and give it its name."""
        size_bytes = self.part.stat().st_size
        sha256, md5 = _digests(self.part)
        for kind, expected, actual in (
            ("bytes", self.file.size_bytes, size_bytes),
            ("SHA-256", self.file.sha256, sha256),
            ("MD5", self.file.md5, md5),
        ):
            if expected is not None and expected != actual:
                self.drop()
                # Once more from the start: a part of another version fails like this.
                raise _Failed(f"has {kind} {actual}, expected {expected}", retry_after_s=0.0)
        self.part.replace(self.path)
        fetched = Fetched(
            path=self.file.path,
            url=bare_url(self.file.url),
            size_bytes=size_bytes,
            sha256=sha256,
            etag=etag,
        )
        mtime_ns = self.path.stat().st_mtime_ns
        note = {"url": self.file.url, "mtime_ns": mtime_ns, "fetched": fetched.model_dump()}
        write_json(self._receipt, note)
        self._note.unlink(missing_ok=True)
        return fetched

    def drop(self) -> None:
        """Forget the part."""
        self.part.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)


def _attempt(client: httpx.Client, target: _Target, advance: Advance) -> Fetched:
    num_begun, etag = target.begun()
    headers = {**target.file.headers, "Accept-Encoding": "identity"}
    if num_begun:
        headers |= {"Range": f"bytes={num_begun}-"} | ({"If-Range": etag} if etag else {})
    try:
        with client.stream("GET", target.file.url, headers=headers) as response:
            if response.status_code == 416:  # the part is as long as the file, or longer
                return _finish_part(target, num_begun, etag, advance)
            _check_status(response)
            is_rest = response.status_code == 206 and num_begun > 0
            if is_rest and not _starts_at(response, num_begun):
                target.drop()
                raise _Failed("answered another range than was asked for", retry_after_s=0.0)
            etag = response.headers.get("etag") or response.headers.get("last-modified", "")
            if not is_rest:
                target.begin(etag)
            advance(num_begun if is_rest else 0)
            _append(response, target, advance)
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise _Failed(f"connection failed ({reason})", retry_after_s=0.0) from None
    except httpx.InvalidURL as error:
        raise _Failed(f"is no address ({error})") from None
    return target.finish(etag)


def _finish_part(target: _Target, num_begun: int, etag: str, advance: Advance) -> Fetched:
    if not num_begun:
        raise _Failed("answered 416 to a request without a range")
    expected = target.file.size_bytes
    if expected is not None and num_begun != expected:
        target.drop()
        raise _Failed(f"part of {num_begun} bytes, file has {expected}", retry_after_s=0.0)
    advance(num_begun)
    return target.finish(etag)


def _check_status(response: httpx.Response) -> None:
    status = response.status_code
    if status in (200, 206):
        return
    reason = f"HTTP {status} {response.reason_phrase}".strip()
    if status in (401, 403):
        reason += ": access is refused: accept the data set's terms, log in (HF_TOKEN)"
    if status not in _TRANSIENT:
        raise _Failed(reason)
    given = response.headers.get("retry-after", "")
    raise _Failed(reason, retry_after_s=float(given) if given.isdigit() else 0.0)


def _starts_at(response: httpx.Response, start: int) -> bool:
    given = str(response.headers.get("content-range", ""))
    return given.startswith(f"bytes {start}-")


def _append(response: httpx.Response, target: _Target, advance: Advance) -> None:
    """Write the body to the part; a host that sends more than it promised is cut off."""
    limit = target.file.size_bytes
    with target.part.open("ab") as part:
        size_bytes = part.tell()
        for block in response.iter_raw():
            size_bytes += len(block)
            if limit is not None and size_bytes > limit:
                target.drop()
                raise _Failed(f"sends more than the {limit} bytes that it promised")
            part.write(block)
            advance(len(block))
        part.flush()
        os.fsync(part.fileno())


def bare_url(url: str) -> str:
    """An address without user, password, query and fragment: fit for logs and manifests."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the name holds all of it or what it held before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _digests(path: Path) -> tuple[str, str]:
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            sha256.update(block)
            md5.update(block)
    return sha256.hexdigest(), md5.hexdigest()
