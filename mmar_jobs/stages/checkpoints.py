"""Checkpoints of one training run in a store: a state and, once that is durable, its manifest.

A state without a manifest was torn by a kill and is never read. The one before is removed only when
the new one is complete. Not here: what a state holds (qlora/checkpoint.py).
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from mmar_jobs.errors import DataError
from mmar_jobs.manifest import canonical_json
from mmar_jobs.store import Store
from mmar_jobs.store.base import Measure

_MANIFEST: Final = re.compile(r"step-(\d{8})\.json")


@dataclass(frozen=True)
class StoreCheckpoints:
    """The checkpoints below `key`: one, or two for the moment in which one replaces the other."""

    store: Store
    key: str

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, None before the first."""
        found = (_MANIFEST.fullmatch(name.rpartition("/")[2]) for name in self._keys())
        return max((int(match[1]) for match in found if match), default=None)

    @contextmanager
    def load(self, step: int) -> Iterator[Path]:
        """A local copy of one state; a DataError when it is not, byte by byte, what was saved.

        A damaged checkpoint stops the run rather than fall back to an older one: what damaged it
        may have damaged more, and who deletes it has looked.
        """
        state, manifest = self._names(step)
        expected = _parse(self.store.read(manifest), f"{self.store.uri}/{manifest}")
        with TemporaryDirectory(prefix="mmar-checkpoint-") as folder:
            path = Path(folder) / "state.safetensors"
            self.store.download(state, path)
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if (digest, path.stat().st_size) != expected:
                raise DataError(
                    f"the checkpoint {self.store.uri}/{state} is damaged (not the "
                    f"{expected.size_bytes} bytes that were saved): delete {self.key} to start "
                    "this training over"
                )
            yield path

    def save(self, step: int, parts: Iterator[memoryview]) -> None:
        """Write the state, then its manifest, then remove what is older."""
        digest, size_bytes = hashlib.sha256(), 0

        def measured() -> Iterator[memoryview]:
            nonlocal size_bytes
            for part in parts:
                digest.update(part)
                size_bytes += part.nbytes
                yield part

        state, manifest = self._names(step)
        self.store.write_parts(state, measured())
        found = Measure(digest.hexdigest(), size_bytes)
        self.store.write(manifest, canonical_json(found._asdict()))
        self._remove_but({state, manifest})

    def clear(self) -> None:
        """Remove all of them; the adapter is finished."""
        self._remove_but(set())

    def _names(self, step: int) -> tuple[str, str]:
        stem = f"{self.key}/step-{step:08d}"
        return f"{stem}.safetensors", f"{stem}.json"

    def _keys(self) -> list[str]:
        return self.store.list(f"{self.key}/")

    def _remove_but(self, kept: set[str]) -> None:
        # Manifests first (".json" sorts before ".safetensors"): what is half removed is torn.
        for key in self._keys():
            if key not in kept:
                self.store.delete(key)


def _parse(data: bytes, where: str) -> Measure:
    try:
        return Measure(**json.loads(data))
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{where} is damaged: delete it and its state to start this training over"
        ) from error
