"""Writing the merged model's folder: same files, names, order and dtypes as the base.

Not here: the arithmetic (merge.py), where base and adapter come from (merge_run.py).

A shard's header is copied byte for byte and its tensors are streamed through, so memory holds one
tensor and one layer's factors a thread: 160 MB at the shape of the 30B model, where a shard has 4
GB. It takes 5 s of CPU time a GB, digests of base and output included. All is written below
OUTPUT.partial, which becomes OUTPUT in one step; what a killed merge finished is verified and kept.
"""

import fcntl
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

import torch
from pydantic import ValidationError

from mmar_jobs.artifact import MANIFEST
from mmar_jobs.errors import DataError, GateError, SettingsError, TryAgain
from mmar_jobs.manifest import Manifest, Shard, difference, fingerprint
from mmar_jobs.progress import Advance, Tracker, no_bar
from mmar_jobs.qlora.base_files import Source, projection_of
from mmar_jobs.qlora.merge import AdapterPairs
from mmar_jobs.qlora.tensor_file import Slot, read_tensor, tensor_bytes
from mmar_jobs.store import disk
from mmar_jobs.store.base import TEMPORARY

T = TypeVar("T")

STAGE: Final = "merge"
_RECIPE: Final = {"arithmetic": "fp32, rounded once"}
_JOURNAL: Final = ".mmar-merge.json"
_BLOCK_BYTES: Final = 1 << 22


@dataclass(frozen=True)
class Job:
    """What is merged: the base's files and an adapter that fits them.

    `open_pairs` is given a folder of its own, which it may fill and which is removed afterwards.
    """

    sources: tuple[Source, ...]
    open_pairs: Callable[[Path], AdapterPairs]
    inputs: Mapping[str, str]
    device: torch.device

    @property
    def size_bytes(self) -> int:
        """Bytes of the merged folder."""
        return sum(source.size_bytes for source in self.sources)


def merge_to(
    job: Job, output: Path, *, num_threads: int = 1, track: Tracker = no_bar
) -> tuple[Manifest, bool]:
    """Make or verify the merged folder at `output`; the manifest, and whether it was there already.

    Of several processes with one `output` one merges and the others wait for it. SettingsError when
    `output` holds anything else, GateError when a finished file was changed, TryAgain when the disk
    is full.
    """
    partial = output.with_name(f"{output.name}.partial")
    with disk.explained("write", str(output)):
        disk.make_folder(output.parent)
        with _locked(output.with_name(f"{output.name}.lock")):
            finished = find_merged(output, job.inputs)
            if finished is not None:
                verify(output, finished, num_threads=num_threads, track=track)
                return finished, True
            manifest = _fill(job, partial, num_threads=num_threads, track=track)
            partial.rename(output)
            disk.sync_folder(output.parent)
    return manifest, False


def check_place(output: Path, base: Path) -> None:
    """Raise SettingsError where no folder can be made, or where it would be part of the base."""
    if output.resolve().is_relative_to(base.resolve()):
        raise SettingsError(f"{output} lies in the base's folder: choose another output")
    if output.is_mount():
        raise SettingsError(f"{output} is a mount point: choose a folder below it")


def find_merged(output: Path, inputs: Mapping[str, str]) -> Manifest | None:
    """The manifest of a finished merge of these inputs; None where there is nothing yet."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    path = output / MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        raise SettingsError(
            f"{output} holds something, and no finished merge: choose another output"
        ) from None
    if manifest.fingerprint != fingerprint(STAGE, _RECIPE, inputs):
        changed = difference({"stage": manifest.stage}, {"stage": STAGE})
        changed += difference(manifest.inputs, inputs)
        raise SettingsError(
            f"{output} holds a merge of other inputs ({'; '.join(changed)}): choose another output"
        )
    return manifest


def verify(output: Path, manifest: Manifest, *, num_threads: int, track: Tracker = no_bar) -> None:
    """Read every file once; GateError names one that is not what was written."""
    with track("verifying", sum(shard.size_bytes for shard in manifest.shards)) as advance:

        def check(shard: Shard) -> None:
            path = output / shard.name
            if not path.is_file() or disk.digest_file(path) != shard.sha256:
                raise GateError(
                    f"{path} is missing or was changed after it was written: delete {output} and "
                    "merge again"
                )
            advance(shard.size_bytes)

        _run(check, manifest.shards, num_threads=num_threads, stop=threading.Event())


@dataclass
class _Journal:
    """Which files of an unfinished merge are durable, and their digests."""

    folder: Path
    inputs: Mapping[str, str]
    digests: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def path(self) -> Path:
        """Where it lies until the manifest says the same."""
        return self.folder / _JOURNAL

    def read(self) -> None:
        """Take over what an earlier attempt finished; SettingsError when it was another merge's."""
        try:
            if self.path.exists():
                content = json.loads(self.path.read_bytes())
                inputs, digests = content["inputs"], dict(content["digests"])
            elif (self.folder / MANIFEST).exists():  # killed in its last moment
                manifest = Manifest.model_validate_json((self.folder / MANIFEST).read_bytes())
                inputs = manifest.inputs
                digests = {shard.name: shard.sha256 for shard in manifest.shards}
            else:
                inputs, digests = dict(self.inputs), {}
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{self.path} is damaged: delete {self.folder} and merge again"
            ) from None
        if inputs != dict(self.inputs):
            raise SettingsError(
                f"{self.folder} holds an unfinished merge of other inputs "
                f"({'; '.join(difference(inputs, self.inputs))}): delete it, or choose another "
                "output"
            )
        if not digests and not self.path.exists() and any(self.folder.iterdir()):
            raise SettingsError(
                f"{self.folder} holds something, and no unfinished merge: choose another output"
            )
        self.digests = digests

    def note(self, name: str, digest: str) -> None:
        """Record one finished file, durably."""
        with self._lock:
            self.digests[name] = digest
            self._write()

    def start(self) -> None:
        """Record whose merge this is, before its first file."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        content = {"inputs": dict(self.inputs), "digests": self.digests}
        data = json.dumps(content, sort_keys=True, indent=1).encode()
        disk.replace_file(self.path, lambda file: _write_all(file, data))


def _fill(job: Job, partial: Path, *, num_threads: int, track: Tracker) -> Manifest:
    journal = _Journal(partial, job.inputs)
    if partial.exists():
        _clear(partial)
        journal.read()
    todo = [source for source in job.sources if not _is_done(source, partial, journal.digests)]
    _check_space(partial.parent, sum(source.size_bytes for source in todo), job.size_bytes)
    disk.make_folder(partial)
    journal.start()
    pairs = job.open_pairs(partial / f"{TEMPORARY}adapter")
    with track("merging", job.size_bytes) as advance:
        advance(job.size_bytes - sum(source.size_bytes for source in todo))
        writer = _Writer(pairs, job.device, advance)

        def make(source: Source) -> None:
            journal.note(source.name, writer.write(source, partial / source.name))

        _run(make, todo, num_threads=num_threads, stop=writer.stop)
    _clear(partial)
    manifest = _manifest(job, journal.digests, num_projections=len(pairs.shapes))
    data = manifest.model_dump_json(indent=1).encode()
    disk.replace_file(partial / MANIFEST, lambda file: _write_all(file, data))
    journal.path.unlink()
    return manifest


def _clear(partial: Path) -> None:
    """Remove what is temporary there: nobody else writes it, for this process holds the lock."""
    for path in list(partial.rglob(f"{TEMPORARY}*")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _is_done(source: Source, partial: Path, digests: Mapping[str, str]) -> bool:
    target = partial / source.name
    return (
        source.name in digests
        and target.is_file()
        and target.stat().st_size == source.size_bytes
        and disk.digest_file(target) == digests[source.name]
    )


def _check_space(folder: Path, needed_bytes: int, total_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise TryAgain(
            f"disk full: {folder} has {free_bytes / 1e9:.1f} GB free, merging needs "
            f"{needed_bytes / 1e9:.1f} more of {total_bytes / 1e9:.1f} GB: free space, then run "
            "the same command again"
        )


@dataclass(frozen=True)
class _Writer:
    """Writes files of the merged folder, each durably under its final name, until `stop`."""

    pairs: AdapterPairs
    device: torch.device
    advance: Advance
    stop: threading.Event = field(default_factory=threading.Event)

    def write(self, source: Source, target: Path) -> str:
        """Write one file; its SHA-256."""
        digest = hashlib.sha256()

        def fill(file: BinaryIO) -> None:
            with source.path.open("rb") as reader:
                for data in self._parts(reader, source):
                    if self.stop.is_set():
                        raise TryAgain("another file failed: run the same command again")
                    digest.update(data)
                    file.write(data)
                    self.advance(len(data))

        with disk.explained("write", str(target)):
            disk.replace_file(target, fill)
        return digest.hexdigest()

    def _parts(self, reader: BufferedReader, source: Source) -> Iterator[bytes | memoryview]:
        if source.header is None:
            yield from _blocks(reader, source.size_bytes)
            return
        yield source.header.raw
        for slot in source.header.slots:
            projection = projection_of(slot.name)
            if projection is not None:
                yield self._merged(reader, slot, projection)
                continue
            reader.seek(slot.start)
            yield from _blocks(reader, slot.size_bytes)

    @torch.no_grad()
    def _merged(self, reader: BufferedReader, slot: Slot, projection: str) -> memoryview:
        weight = read_tensor(reader, slot).to(self.device)
        return tensor_bytes(self.pairs.pair(projection).add_to(weight))


def _blocks(reader: BufferedReader, num_bytes: int) -> Iterator[bytes]:
    while num_bytes:
        block = reader.read(min(num_bytes, _BLOCK_BYTES))
        if not block:
            raise DataError(f"{reader.name} is cut off: it changed while it was read")
        yield block
        num_bytes -= len(block)


def _run(
    call: Callable[[T], None], items: Iterable[T], *, num_threads: int, stop: threading.Event
) -> None:
    """Call for all items, `num_threads` at a time; the first error stops the others."""
    with ThreadPoolExecutor(num_threads) as pool:
        futures = [pool.submit(call, item) for item in items]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _manifest(job: Job, digests: Mapping[str, str], *, num_projections: int) -> Manifest:
    shards = tuple(
        Shard(name=source.name, sha256=digests[source.name], size_bytes=source.size_bytes)
        for source in job.sources
    )
    # No placement, no cost: equal inputs give an equal folder, manifest and model digest included.
    return Manifest(
        stage=STAGE,
        fingerprint=fingerprint(STAGE, _RECIPE, job.inputs),
        recipe=dict(_RECIPE),
        inputs=dict(job.inputs),
        shards=shards,
        counts={"num_projections": num_projections, "num_files": len(shards)},
        metrics={},
        placement={},
        cost={},
    )


def _write_all(file: BinaryIO, data: bytes) -> None:
    file.write(data)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold `path` alone among all processes; the kernel frees it when its holder dies."""
    while True:
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file, path):
                continue  # its last holder removed it meanwhile
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
