"""Artifacts in a store: shards first, manifest last, every read checked against the manifest.

Not here: what the shards mean (stages/) and how bytes reach a disk or S3 (store).
"""

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from mmar_jobs.errors import DataError, GateError, SettingsError
from mmar_jobs.manifest import Manifest, Shard, difference, fingerprint, sha256
from mmar_jobs.records import Record
from mmar_jobs.store import Store

R = TypeVar("R", bound=Record)

MANIFEST = "manifest.json"
PLAN = "plan.json"
_GZIP_LEVEL = 6  # 9 takes 2.2 times as long for 1 % less


@dataclass(frozen=True)
class Artifact:
    """A finished artifact. Reading a shard verifies its digest."""

    store: Store
    key: str
    manifest: Manifest

    @property
    def digest(self) -> str:
        """Digest of the content, as later manifests name it."""
        return self.manifest.digest

    def read_bytes(self, name: str) -> bytes:
        """One shard's bytes; a GateError names the shard when they are not what was written."""
        shard = next((shard for shard in self.manifest.shards if shard.name == name), None)
        if shard is None:
            raise DataError(
                f"artifact {self.key} has no shard {name}: its manifest does not list it"
            )
        data = self.store.read(f"{self.key}/{name}")
        if sha256(data) != shard.sha256:
            raise _damaged(self, name)
        return data

    def read_json(self, name: str) -> Any:
        """One shard that is a single JSON value."""
        return json.loads(self.read_bytes(name))

    def read_records(self, name: str, kind: type[R]) -> Iterator[R]:
        """The records of one JSON-lines shard, in order."""
        yield from parse_records(self.read_bytes(name), kind, f"{self.key}/{name}")

    def records(self, kind: type[R]) -> Iterator[R]:
        """The records of all JSON-lines shards, in order; one shard is in memory at a time."""
        for shard in self.manifest.shards:
            if shard.num_records is not None:
                yield from self.read_records(shard.name, kind)

    def verify(self) -> None:
        """Read every shard once and check its digest; none is held in memory."""
        for shard in self.manifest.shards:
            if self.store.measure(f"{self.key}/{shard.name}").sha256 != shard.sha256:
                raise _damaged(self, shard.name)

    def download(self, folder: Path) -> None:
        """Put all shards as files into `folder`, each verified; none is held in memory."""
        folder.mkdir(parents=True, exist_ok=True)
        for shard in self.manifest.shards:
            self.store.download(f"{self.key}/{shard.name}", folder / shard.name)
            if file_sha256(folder / shard.name) != shard.sha256:
                raise _damaged(self, shard.name)


@dataclass
class Draft:
    """An artifact being made; what is already durable from an earlier attempt is kept."""

    store: Store
    key: str
    stage: str
    recipe: dict[str, Any]
    inputs: dict[str, str]
    _durable: set[str] = field(default_factory=set)
    _shards: dict[str, Shard] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        """Whether shard `name` is already durable."""
        return name in self._durable

    def write_bytes(self, name: str, data: bytes, *, num_records: int | None = None) -> None:
        """Write one shard, atomically."""
        self.store.write(f"{self.key}/{name}", data)
        self._note(name, data, num_records)

    def write_records(self, name: str, records: Iterable[Record]) -> None:
        """Write one gzip JSON-lines shard, atomically; equal records give equal bytes."""
        data, num_records = pack_records(records)
        self.write_bytes(name, data, num_records=num_records)

    def upload(self, path: Path, name: str) -> None:
        """Write a file of any size as one shard."""
        self.store.upload(path, f"{self.key}/{name}")
        self._durable.add(name)
        self._shards[name] = Shard(
            name=name, sha256=file_sha256(path), size_bytes=path.stat().st_size
        )

    def read_records(self, name: str, kind: type[R]) -> list[R]:
        """The records of a shard that is durable already."""
        data = self.store.read(f"{self.key}/{name}")
        records = list(parse_records(data, kind, f"{self.key}/{name}"))
        self._note(name, data, len(records))
        return records

    def names(self, prefix: str) -> list[str]:
        """Names of what is durable and starts with `prefix`, sorted."""
        return sorted(name for name in self._durable if name.startswith(prefix))

    def discard(self, name: str) -> None:
        """Remove what will be no part of the artifact."""
        self.store.delete(f"{self.key}/{name}")
        self._durable.discard(name)
        self._shards.pop(name, None)

    def finish(
        self,
        names: Iterable[str],
        *,
        counts: Mapping[str, int],
        metrics: Mapping[str, Any],
        placement: Mapping[str, Any],
        cost: Mapping[str, float],
    ) -> Artifact:
        """Write the manifest over exactly the shards `names`; only now does the artifact exist."""
        names = list(names)
        for name in names:
            if name not in self._shards:
                self._note_durable(name)
        manifest = Manifest(
            stage=self.stage,
            fingerprint=fingerprint(self.stage, self.recipe, self.inputs),
            recipe=self.recipe,
            inputs=self.inputs,
            shards=tuple(self._shards[name] for name in names),
            counts=dict(counts),
            metrics=dict(metrics),
            placement=dict(placement),
            cost=dict(cost),
        )
        data = manifest.model_dump_json(indent=1).encode()
        if not self.store.write_new(f"{self.key}/{MANIFEST}", data):
            raise SettingsError(
                f"artifact {self.key} in {self.store.uri} was finished by another run meanwhile: "
                "two runs share one --run-id; give one of them another"
            )
        return Artifact(self.store, self.key, manifest)

    def _note_durable(self, name: str) -> None:
        """Note a shard of an earlier attempt; only JSON lines are held in memory, to count them."""
        where = f"{self.key}/{name}"
        if name.endswith(".jsonl.gz"):
            data = self.store.read(where)
            self._note(name, data, sum(1 for _ in _lines(data, where)))
            return
        found = self.store.measure(where)
        self._durable.add(name)
        self._shards[name] = Shard(name=name, sha256=found.sha256, size_bytes=found.size_bytes)

    def _note(self, name: str, data: bytes, num_records: int | None) -> None:
        self._durable.add(name)
        self._shards[name] = Shard(
            name=name, sha256=sha256(data), size_bytes=len(data), num_records=num_records
        )


def find_artifact(store: Store, key: str) -> Artifact | None:
    """The finished artifact at `key`, or None."""
    if not store.exists(f"{key}/{MANIFEST}"):
        return None
    data = store.read(f"{key}/{MANIFEST}")
    try:
        return Artifact(store, key, Manifest.model_validate_json(data))
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            f"{key}/{MANIFEST} in {store.uri} is not a manifest of this version: "
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}; delete {key} and make it again"
        ) from None


def require_artifact(store: Store, key: str, *, stage: str) -> Artifact:
    """The finished artifact at `key`; a DataError says which stage makes it."""
    artifact = find_artifact(store, key)
    if artifact is None:
        raise DataError(f"{store.uri} has no finished {key}: run the {stage} stage first")
    if artifact.manifest.stage != stage:
        raise DataError(f"{key} was made by stage {artifact.manifest.stage}, expected {stage}")
    return artifact


def begin(
    store: Store, key: str, *, stage: str, recipe: Mapping[str, Any], inputs: Mapping[str, str]
) -> Artifact | Draft:
    """Start or continue the artifact at `key`; a finished one of the same fingerprint is verified.

    Raises SettingsError when `key` holds any shard made by another recipe or from other inputs:
    nothing is ever overwritten. A stage that failed before its first shard may be begun anew.
    """
    recipe = json.loads(json.dumps(recipe))
    plan = {"stage": stage, "recipe": recipe, "inputs": dict(inputs)}
    mine = fingerprint(stage, recipe, inputs)
    finished = find_artifact(store, key)
    if finished is not None:
        if finished.manifest.fingerprint != mine:
            _refuse(
                store,
                key,
                finished.manifest.model_dump(include={"stage", "recipe", "inputs"}),
                plan,
            )
        finished.verify()
        return finished
    plan_bytes = json.dumps(plan, sort_keys=True, indent=1).encode()
    is_first = store.write_new(f"{key}/{PLAN}", plan_bytes)
    present = {name.removeprefix(f"{key}/") for name in store.list(f"{key}/")} - {PLAN, MANIFEST}
    if not is_first:
        other = _read_plan(store, key)
        if other != plan and present:
            _refuse(store, key, other, plan)
        if other != plan:
            store.write(f"{key}/{PLAN}", plan_bytes)
    return Draft(store, key, stage, dict(recipe), dict(inputs), present)


def _read_plan(store: Store, key: str) -> dict[str, Any]:
    try:
        plan = json.loads(store.read(f"{key}/{PLAN}"))
        return {name: plan[name] for name in ("stage", "recipe", "inputs")}
    except (ValueError, KeyError, TypeError):
        raise DataError(
            f"{key}/{PLAN} in {store.uri} is damaged: delete {key} and run its stage again"
        ) from None


def pack_records(records: Iterable[Record]) -> tuple[bytes, int]:
    """Gzip JSON lines and their number; the unpacked lines are never held all at once."""
    num_records = 0
    buffer = io.BytesIO()
    with gzip.GzipFile("", "wb", _GZIP_LEVEL, buffer, mtime=0) as file:
        for record in records:
            file.write(record.model_dump_json().encode() + b"\n")
            num_records += 1
    return buffer.getvalue(), num_records


def parse_records(data: bytes, kind: type[R], where: str) -> Iterator[R]:
    """Parse gzip JSON lines; a DataError names the line that is broken."""
    for number, line in enumerate(_lines(data, where), 1):
        try:
            yield kind.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise DataError(f"{where} line {number}: {place}: {first['msg']}") from None


def _lines(data: bytes, where: str) -> Iterator[bytes]:
    """The lines of gzip data, without holding all of it unpacked."""
    if not data:  # gzip takes nothing at all for an empty file
        raise DataError(f"{where} is empty: delete it and run its stage again")
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            yield from file
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{where} is not a readable gzip file ({error}): delete it and run its stage again"
        ) from None


def file_sha256(path: Path) -> str:
    """Hex digest of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(artifact: Artifact, name: str) -> GateError:
    return GateError(
        f"shard {artifact.key}/{name} in {artifact.store.uri} was changed or damaged after it was "
        "written (digest differs from its manifest): delete the artifact and make it again"
    )


def _refuse(store: Store, key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    changed = difference({"stage": old["stage"]}, {"stage": new["stage"]})
    changed += difference(old["recipe"], new["recipe"])
    changed += [f"input {line}" for line in difference(old["inputs"], new["inputs"])]
    shown = "; ".join(changed[:4]) + (f"; and {len(changed) - 4} more" if len(changed) > 4 else "")
    raise SettingsError(
        f"{key} in {store.uri} was made with other settings or inputs ({shown}): "
        "use the same ones, or choose another --run-id"
    )
