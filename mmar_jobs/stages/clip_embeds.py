"""Audio embeddings of clips in a store, so that no tower hears a clip twice.

Shards of some hundred clips, each with an index that is written last and says which clips, by which
tower, with which digest. Whatever does not fit its index is made again, never used. Not here: the
tower (qlora/audio_embeds.py), which clips are needed (encoding.py).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmar_jobs.artifact import file_sha256
from mmar_jobs.errors import DataError
from mmar_jobs.layout import clip_embeds_key
from mmar_jobs.manifest import canonical_json, sha256
from mmar_jobs.qlora.audio_embeds import AudioEmbeds, Embeds, write_embeds
from mmar_jobs.store import Store


@dataclass(frozen=True)
class Shard:
    """One file of embeddings: its name, digest, and the number of audio tokens of its clips."""

    name: str
    sha256: str
    num_tokens: dict[str, int]


@dataclass
class ClipEmbeds:
    """The embeddings of one tower; `facts` are all that changes them. `folder` holds local copies.

    Safe for several processes and runs at once: shards are named by their content.
    """

    store: Store
    facts: Mapping[str, Any]
    folder: Path
    log: Any
    embeds: AudioEmbeds = field(default_factory=AudioEmbeds)

    @property
    def key(self) -> str:
        """Where the shards of this tower lie."""
        return clip_embeds_key(sha256(canonical_json(dict(self.facts)))[:16])

    def find(self, clips: Iterable[str]) -> list[Shard]:
        """Shards that hold any of `clips` (digests), each with those that no other has."""
        missing, found = set(clips), []
        for key in self.store.list(f"{self.key}/"):
            shard = self._read_index(key) if key.endswith(".json") else None
            if shard is None:
                continue
            held = {clip: n for clip, n in shard.num_tokens.items() if clip in missing}
            if held:
                missing -= held.keys()
                found.append(Shard(shard.name, shard.sha256, held))
        return found

    def load(self, shard: Shard) -> bool:
        """Make a shard's clips available; False, and it is dropped, when it is damaged."""
        path = self.folder / f"{shard.name}.safetensors"
        try:
            self.store.download(f"{self.key}/{path.name}", path)
        except DataError:  # gone, or S3's own checksum differs
            return self._drop(shard)
        if file_sha256(path) != shard.sha256:
            return self._drop(shard)
        self.embeds.open(path)
        return True

    def save(self, embeds: Embeds) -> None:
        """Make a shard of `embeds`, durable for others and available here."""
        partial = self.folder / "partial"
        write_embeds(embeds, partial)
        digest = file_sha256(partial)
        name = digest[:32]
        path = partial.rename(self.folder / f"{name}.safetensors")
        self.store.upload(path, f"{self.key}/{path.name}")
        index = {
            "facts": dict(self.facts),
            "sha256": digest,
            "num_tokens": {clip: embeds[clip].shape[0] for clip in sorted(embeds)},
        }
        self.store.write(f"{self.key}/{name}.json", canonical_json(index))
        self.embeds.open(path)

    def _drop(self, shard: Shard) -> bool:
        self.log.warning("clip_embeds_dropped", key=f"{self.key}/{shard.name}", reason="damaged")
        for ending in ("json", "safetensors"):
            self.store.delete(f"{self.key}/{shard.name}.{ending}")
        return False

    def _read_index(self, key: str) -> Shard | None:
        """The shard that an index describes; None for one that is broken or of another tower."""
        try:
            index = json.loads(self.store.read(key))
            if index["facts"] != dict(self.facts):
                return None
            name = key.rpartition("/")[2].removesuffix(".json")
            num_tokens = {str(clip): int(n) for clip, n in index["num_tokens"].items()}
            return Shard(name, str(index["sha256"]), num_tokens)
        except (DataError, ValueError, KeyError, TypeError, AttributeError):
            return None
