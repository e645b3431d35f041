"""From a base folder and an adapter, wherever it lies, to a verified merged folder.

Not here: how the folder is written (merge_folder.py), flags and output (merge_command.py).

Serving merges on its own node and keeps the result in a cache, under the first 16 characters of the
model's hash (identity.py): 8 GB of adapter travel instead of 61 GB of weights.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
import torch

from mmar_jobs.artifact import MANIFEST, Artifact, file_sha256, find_artifact
from mmar_jobs.base_model import model_digest
from mmar_jobs.errors import DataError, GateError
from mmar_jobs.identity import ModelIdentity
from mmar_jobs.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from mmar_jobs.progress import Tracker, no_bar
from mmar_jobs.qlora.adapter_file import BASE_DIGEST, open_adapter
from mmar_jobs.qlora.base_files import check_projections, read_sources
from mmar_jobs.qlora.merge import AdapterPairs
from mmar_jobs.qlora.merge_folder import (
    Job,
    check_place,
    find_merged,
    merge_to,
    verify,
)
from mmar_jobs.store import open_store, split_uri
from mmar_jobs.store.uri import parse_uri

_NAME_LENGTH: Final = 16
_FILES: Final = (ADAPTER_WEIGHTS, ADAPTER_CONFIG)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and how fast, not what: no field changes a merged byte on one kind of device."""

    device: str = "cpu"
    num_threads: int = 1
    track: Tracker = no_bar


@dataclass(frozen=True, slots=True)
class Merged:
    """A finished merged folder; `was_finished` when an earlier merge had made it."""

    path: Path
    identity: ModelIdentity
    size_bytes: int
    was_finished: bool


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter by the digests of its two files: a folder here, or an artifact to download.

    `trained_on` is the digest of its base, None where a foreign adapter does not say.
    """

    digests: Mapping[str, str]
    trained_on: str | None
    folder: Path | None
    artifact: Artifact | None

    def files(self, scratch: Path) -> Path:
        """The adapter's folder on this machine: `scratch` when it has to be downloaded."""
        if self.folder is not None:
            return self.folder
        assert self.artifact is not None
        self.artifact.download(scratch)
        return scratch


def find_adapter(reference: str, *, endpoint_url: str | None = None) -> Adapter:
    """The adapter at a folder, or at the s3:// address of an artifact that train made.

    DataError where there is none; GateError when a folder's files are not those of its manifest.
    """
    address = parse_uri(reference)
    local = Path(address.path) if address.scheme == "file" else None
    artifact = None
    if local is None or (local / MANIFEST).is_file():
        root, key = split_uri(reference.rstrip("/"))
        artifact = find_artifact(open_store(root, endpoint_url=endpoint_url), key)
        if artifact is None:
            raise DataError(f"{reference} holds no finished artifact: name the adapter of a train")
    recorded = {shard.name: shard.sha256 for shard in artifact.manifest.shards} if artifact else {}
    if artifact is not None and not recorded.keys() >= set(_FILES):
        raise DataError(f"{reference} is an artifact of {artifact.manifest.stage}, not an adapter")
    if local is None:
        assert artifact is not None
        trained_on = artifact.manifest.recipe.get("base_digest")
        return Adapter({name: recorded[name] for name in _FILES}, trained_on, None, artifact)
    trained_on = open_adapter(local).metadata.get(BASE_DIGEST)
    digests = {name: file_sha256(local / name) for name in _FILES if (local / name).is_file()}
    odd = [name for name in digests if recorded.get(name, digests[name]) != digests[name]]
    if odd:
        raise GateError(
            f"{local / odd[0]} was changed or damaged after it was written (digest differs from "
            "its manifest): copy the adapter again"
        )
    return Adapter(digests, trained_on, local, None)


def merge_model(
    base: Path,
    adapter: Adapter,
    *,
    output: Path | None,
    cache: Path | None,
    placement: Placement,
) -> Merged:
    """Merge, or verify what is merged already, at `output` or in `cache` under the model's hash.

    What can be known from file headers is checked before a digest is computed. Raises DataError
    when the two do not fit and GateError when the adapter was trained on another base.
    """
    sources = read_sources(base)
    if adapter.folder is not None:
        check_projections(sources, AdapterPairs(adapter.folder))
    identity = ModelIdentity(
        base_digest=model_digest(base), adapter_digest=adapter.digests[ADAPTER_WEIGHTS]
    )
    _check_base(adapter, identity.base_digest, base)
    inputs = {
        "base": identity.base_digest,
        "adapter": adapter.digests[ADAPTER_WEIGHTS],
        "adapter_config": adapter.digests[ADAPTER_CONFIG],
    }
    if cache is not None:
        output = cache / identity.hash[:_NAME_LENGTH]
    assert output is not None
    output = Path(os.path.abspath(output))  # noqa: PTH100 - keeps links
    check_place(output, base)
    finished = find_merged(output, inputs)
    if finished is not None:  # without a lock: a cache may be mounted for reading only
        verify(output, finished, num_threads=placement.num_threads, track=placement.track)
        size_bytes = sum(shard.size_bytes for shard in finished.shards)
        return Merged(output, identity, size_bytes, was_finished=True)
    num_threads = min(placement.num_threads, len(sources))
    device = torch.device(placement.device)

    def open_pairs(scratch: Path) -> AdapterPairs:
        pairs = AdapterPairs(adapter.files(scratch), device=device, num_layers_kept=num_threads + 1)
        check_projections(sources, pairs)
        return pairs

    job = Job(sources, open_pairs, inputs, device)
    with _one_torch_thread():
        _, was_finished = merge_to(job, output, num_threads=num_threads, track=placement.track)
    return Merged(output, identity, job.size_bytes, was_finished)


def _check_base(adapter: Adapter, base_digest: str, base: Path) -> None:
    if adapter.trained_on is None:
        structlog.get_logger().warning("adapter_names_no_base", base=str(base))
    elif adapter.trained_on != base_digest:
        raise GateError(
            f"the adapter was trained on base {adapter.trained_on[:12]}, {base} is "
            f"{base_digest[:12]}: give the base that it was trained on"
        )


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Threads work on whole shards: torch's own would only fight for the same cores.

    One thread a product also makes the bytes independent of the number of cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
