"""The files of a base model as a merge sees them: shards, and what is copied as it is.

Not here: digests (base_model.py), merging (merge_folder.py).
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mmar_jobs.artifact import MANIFEST
from mmar_jobs.errors import DataError
from mmar_jobs.qlora.merge import AdapterPairs, check_fit
from mmar_jobs.qlora.tensor_file import Header, read_header

_MERGEABLE: Final = frozenset({"BF16", "F32"})
_PROJECTION: Final = re.compile(
    r"thinker\.(?P<name>model\.layers\.\d+\."
    r"(self_attn\.[qkvo]_proj|mlp\.experts\.\d+\.(gate|up|down)_proj))\.weight"
)
_INDEX_SUFFIX: Final = ".safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Source:
    """A file of the base; `header` is None for what is copied as it is."""

    path: Path
    name: str
    size_bytes: int
    header: Header | None


def projection_of(tensor_name: str) -> str | None:
    """What an adapter calls this tensor of the original layout; None when none may change it."""
    match = _PROJECTION.fullmatch(tensor_name)
    return match["name"] if match else None


def read_sources(base: Path) -> tuple[Source, ...]:
    """All files of a model folder, shards opened; DataError where some are missing or broken.

    Folders below it are part of the model unless hidden (a downloader's or a version control's).
    """
    if not base.is_dir():
        raise DataError(f"{base} is no folder: give the base model's")
    sources = []
    for path in sorted(base.rglob("*")):
        relative = path.relative_to(base)
        hidden = any(part.startswith(".") for part in relative.parent.parts)
        if hidden or not path.is_file() or str(relative) == MANIFEST:
            continue
        is_shard = path.suffix == ".safetensors" and path.parent == base
        header = read_header(path) if is_shard else None
        sources.append(Source(path, str(relative), path.stat().st_size, header))
    shards = [source for source in sources if source.header is not None]
    if not shards:
        raise DataError(f"{base} holds no .safetensors file: give the base model's folder")
    _check_index(base, shards)
    return tuple(sources)


def _check_index(base: Path, shards: list[Source]) -> None:
    place: dict[str, str] = {}
    for shard in shards:
        assert shard.header is not None
        for slot in shard.header.slots:
            if slot.name in place:
                raise DataError(
                    f"{base}: {slot.name} is in {place[slot.name]} and in {shard.name}: remove the "
                    "shards that do not belong to this model"
                )
            place[slot.name] = shard.name
    for path in sorted(base.glob(f"*{_INDEX_SUFFIX}")):
        try:
            indexed = dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is no readable index ({error}): copy it again") from None
        odd = next((name for name in sorted(indexed) if place.get(name) != indexed[name]), None)
        if odd is not None:
            raise DataError(
                f"{path} says that {odd} is in {indexed[odd]}, which does not hold it: copy the "
                "base again, all files of one release"
            )


def check_projections(sources: Sequence[Source], pairs: AdapterPairs) -> None:
    """Raise DataError unless adapter and base hold the same projections, in dtypes to merge in."""
    shapes: dict[str, tuple[int, ...]] = {}
    for source in sources:
        for slot in source.header.slots if source.header else ():
            name = projection_of(slot.name)
            if name is None:
                continue
            if slot.dtype not in _MERGEABLE:
                raise DataError(
                    f"{source.path}: {slot.name} is {slot.dtype}: merge into the original weights, "
                    "in bf16 or fp32"
                )
            shapes[name] = slot.shape
    check_fit(pairs.shapes, shapes)
