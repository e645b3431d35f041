"""Examines many clips at once, in processes, and remembers them.

Not here: what is measured (clip_facts.py). A clip that cannot be read or decoded is a result with
its reason and not an error; the death of a worker is one.
"""

import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Final

from loky import ProcessPoolExecutor

from mmar_jobs.audio import check_length
from mmar_jobs.datasets.clip_cache import ClipCache
from mmar_jobs.datasets.clip_facts import ClipFacts, measure
from mmar_jobs.datasets.fingerprint import Print
from mmar_jobs.errors import DataError, SettingsError, TryAgain
from mmar_jobs.failures import explain
from mmar_jobs.manifest import sha256
from mmar_jobs.progress import Tracker
from mmar_jobs.sigterm import noted_sigterm
from mmar_jobs.store import read_uri

_BATCH: Final = 16
_BATCHES_AHEAD: Final = 4  # per worker: enough to keep it busy, few enough to stop at once
_LOOK_FOR_PARENT_S: Final = 1


@dataclass(frozen=True)
class Place:
    """How clips are read: where relative paths begin, the S3 server, the longest clip allowed."""

    audio_root: str
    endpoint_url: str | None = None
    max_clip_s: float | None = None
    cache: Path | None = None


@dataclass(frozen=True, slots=True)
class Examined:
    """What came of one clip: facts and print, or `problem`, one line that says why not.

    `audio_sha256` is empty where the file could not be read.
    """

    facts: ClipFacts | None
    made: Print | None
    problem: str = ""
    audio_sha256: str = ""
    is_new: bool = field(default=True, compare=False)


def examine(paths: Sequence[str], place: Place, track: Tracker, *, jobs: int) -> list[Examined]:
    """Examine the clips at `paths`, in their order, with `jobs` processes (1: in this one)."""
    found = dict(examine_each(paths, place, track, jobs=jobs))
    return [found[path] for path in paths]


def examine_each(
    paths: Iterable[str], place: Place, track: Tracker, *, jobs: int
) -> Iterator[tuple[str, Examined]]:
    """Each path once with what came of its clip, as they come.

    Raises TryAgain on SIGTERM, after what is measured was written to the cache.
    """
    distinct = list(dict.fromkeys(paths))
    cache = _open(place.cache)
    with noted_sigterm() as stop, track("examining clips", len(distinct)) as advance:
        try:
            for names, results in _batches(distinct, place, jobs):
                if cache is not None:
                    cache.put((r.facts, r.made) for r in results if r.is_new and r.facts and r.made)
                yield from zip(names, results, strict=True)
                advance(len(names))
                if stop.is_set():
                    raise TryAgain("asked to stop (SIGTERM): run the same command again to go on")
        finally:
            if cache is not None:
                cache.close()


def _open(path: Path | None) -> ClipCache | None:
    return None if path is None else ClipCache(path)


def _batches(
    paths: Sequence[str], place: Place, jobs: int
) -> Iterator[tuple[Sequence[str], list[Examined]]]:
    batches = [paths[first : first + _BATCH] for first in range(0, len(paths), _BATCH)]
    if jobs == 1 or len(batches) == 1:
        for batch in batches:
            yield batch, _examine_batch(batch, place)
        return
    # loky's: where a worker dies while another one starts, Python's own pool may wait for ever.
    pool = ProcessPoolExecutor(min(jobs, len(batches)), initializer=_calm, initargs=(os.getpid(),))
    pending: dict[Future[list[Examined]], Sequence[str]] = {}
    waiting = iter(batches)
    try:
        while True:
            for batch in waiting:
                pending[pool.submit(_examine_batch, batch, place)] = batch
                if len(pending) >= jobs * _BATCHES_AHEAD:
                    break
            if not pending:
                return
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                yield pending.pop(future), future.result()
    except BrokenProcessPool:
        raise DataError(_death(list(pending.values()))) from None
    finally:
        pool.shutdown(kill_workers=True)


def _death(batches: Sequence[Sequence[str]]) -> str:
    names = [name for batch in batches for name in batch]
    return (
        f"a process that decodes clips died, of memory or of a broken file, one of {len(names)} "
        f"from {names[0]} on: --jobs 1 shows which"
        if names
        else "a process that decodes died"
    )


def _calm(parent: int) -> None:
    """A worker ends when its parent says so, or is no more: Ctrl-C reaches the whole group."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["OMP_NUM_THREADS"] = "1"
    Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_FOR_PARENT_S)
    os._exit(1)


def _examine_batch(paths: Sequence[str], place: Place) -> list[Examined]:
    cache = None
    if place.cache is not None:
        with suppress(SettingsError):  # being written for the first time
            cache = ClipCache(place.cache, read_only=True)
    try:
        return [_examine(path, place, cache) for path in paths]
    finally:
        if cache is not None:
            cache.close()


def _examine(path: str, place: Place, cache: ClipCache | None) -> Examined:
    digest = ""
    try:
        data = read_uri(path, root=place.audio_root, endpoint_url=place.endpoint_url)
        digest = sha256(data)
        known = cache.get(digest) if cache is not None else None
        facts, made = known or measure(data, path, max_s=place.max_clip_s)
        check_length(facts.duration_s, place.max_clip_s, path)
    except DataError as error:
        return Examined(None, None, str(error), digest)
    except (SettingsError, OSError) as error:
        # One file may be unreadable; a bucket that refuses everything is refused at the first.
        cause = error.__cause__ if isinstance(error, SettingsError) else error
        if not isinstance(cause, OSError):
            raise
        known_as = error if isinstance(error, SettingsError) else explain(error)
        return Examined(None, None, f"{path}: {known_as or error}", digest)
    return Examined(facts, made, "", digest, is_new=known is None)
