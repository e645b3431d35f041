"""What an artifact is: recipe, inputs, shards and the digests that tie them together; pure.

Not here: where artifacts lie and how shards are read and written (artifact.py).
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from mmar_jobs.records import Record

SCHEMA_VERSION: Final = 1


def sha256(data: bytes) -> str:
    """Hex digest of `data`."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: Any) -> bytes:
    """One byte string per JSON value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def fingerprint(stage: str, recipe: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """What determines an artifact's content: stage, recipe and the digests of its inputs."""
    return sha256(canonical_json([SCHEMA_VERSION, stage, dict(recipe), dict(inputs)]))


class Shard(Record):
    """One finished file of an artifact; `num_records` is None for files that are not JSON lines."""

    name: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size_bytes: Annotated[int, Field(ge=0)]
    num_records: Annotated[int, Field(ge=0)] | None = None


class Manifest(Record):
    """Written last: an artifact without a manifest does not exist.

    `recipe` changes the result, `placement` (paths, host, threads) and `cost` (seconds, bytes) do
    not. `inputs` maps each input's name to that artifact's `digest`.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    stage: str
    fingerprint: str
    recipe: dict[str, Any]
    inputs: dict[str, str]
    shards: tuple[Shard, ...]
    counts: dict[str, int]
    metrics: dict[str, Any]
    placement: dict[str, Any]
    cost: dict[str, float]

    @property
    def digest(self) -> str:
        """Digest of the content: equal where the same bytes were made from the same recipe."""
        shards = [(shard.name, shard.sha256) for shard in self.shards]
        return sha256(canonical_json([self.fingerprint, shards]))


def plan_shards(num_items: int, items_per_shard: int) -> Iterator[tuple[str, slice]]:
    """Name and item range of each shard, e.g. `part-00003-of-00016.jsonl.gz`.

    The plan depends on nothing but the two numbers: a restarted stage finds its shards again.
    """
    if items_per_shard < 1:
        raise ValueError("items_per_shard must be at least 1")
    num_shards = -(-num_items // items_per_shard)
    for index in range(num_shards):
        first = index * items_per_shard
        name = f"part-{index:05d}-of-{num_shards:05d}.jsonl.gz"
        yield name, slice(first, min(first + items_per_shard, num_items))


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two recipes, as `path: old -> new`, for error messages."""
    found: list[str] = []
    for key in sorted({*old, *new}):
        path = f"{prefix}{key}"
        if key not in old or key not in new:
            found.append(f"{path}: {_shown(old, key)} -> {_shown(new, key)}")
            continue
        before, after = old[key], new[key]
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += difference(before, after, f"{path}.")
        elif before != after:
            found.append(f"{path}: {before!r} -> {after!r}")
    return found


def _shown(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "nothing"
