"""The bench of a store: how fast bytes go in and out, and with how many requests.

Not here: what the store does (store/).
"""

import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmar_jobs.bench.result import Environment, Measurement, Scalar
from mmar_jobs.store import Store, open_store
from mmar_jobs.store.file import FileStore


@dataclass(frozen=True, slots=True)
class StoreBench:
    """Which store, how many bytes an object, how many objects, how often."""

    uri: str = ""
    endpoint_url: str | None = None
    object_mb: int = 64
    num_objects: int = 4
    repeats: int = 6


def run_store_bench(bench: StoreBench, environment: Environment) -> Iterator[Measurement]:
    """Megabytes (10^6) a second of upload and verified download, and requests a gigabyte of both.

    Without an address in a folder of this machine. What was written is deleted again.
    """
    with tempfile.TemporaryDirectory(prefix="mmar-bench-") as folder:
        uri = bench.uri or f"{folder}/store"
        rounds = _Rounds(open_store(uri, endpoint_url=bench.endpoint_url), Path(folder), bench)
        for _ in range(bench.repeats):
            rounds.turn()
    case: dict[str, Scalar] = {
        "scheme": uri.partition("://")[0] if "://" in uri else "file",
        "object_mb": bench.object_mb,
        "objects": bench.num_objects,
    }
    size_mb = bench.object_mb * bench.num_objects
    for name, seconds in (("upload", rounds.up_s), ("download", rounds.down_s)):
        values = tuple(size_mb / one for one in seconds)
        yield Measurement(f"store/{name}_mb_per_s", "MB/s", "higher", values, case, environment)
    if rounds.num_requests:
        per_gb = tuple(1000 * num / size_mb for num in rounds.num_requests)
        yield Measurement("store/requests_per_gb", "requests", "lower", per_gb, case, environment)


class _Rounds:
    """Objects written and read again, and what each round took."""

    def __init__(self, store: Store, folder: Path, bench: StoreBench) -> None:
        self._store, self._folder, self._bench = store, folder, bench
        self.up_s: list[float] = []
        self.down_s: list[float] = []
        self.num_requests: list[int] = []
        (folder / "source").write_bytes(os.urandom(bench.object_mb * 10**6))

    def turn(self) -> None:
        """One round; its objects are deleted, also when it fails."""
        keys = [f"bench/{uuid.uuid4()}" for _ in range(self._bench.num_objects)]
        before = _num_requests(self._store)
        try:
            start_s = time.perf_counter()
            for key in keys:
                self._store.upload(self._folder / "source", key)
            middle_s = time.perf_counter()
            for key in keys:
                self._store.download(key, self._folder / "target")
            end_s = time.perf_counter()
            after = _num_requests(self._store)
        finally:
            for key in keys:
                self._store.delete(key)
        self.up_s.append(middle_s - start_s)
        self.down_s.append(end_s - middle_s)
        if before is not None and after is not None:
            self.num_requests.append(after - before)


def _num_requests(store: Store) -> int | None:
    """Requests sent so far, None for a store that sends none."""
    if isinstance(store, FileStore):
        return None
    from mmar_jobs.store.s3 import S3Store  # noqa: PLC0415 - boto3, which a folder never pays for

    assert isinstance(store, S3Store)
    return store.num_requests
