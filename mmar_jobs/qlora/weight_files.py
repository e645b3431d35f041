"""The weights of a model folder: which file holds which tensor, and reading them at disk speed.

Not here: what the tensors mean (load.py), the file format (tensor_file.py), writing.
"""

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import torch
from torch import Tensor

from mmar_jobs.errors import DataError, GateError
from mmar_jobs.qlora.tensor_file import DTYPES, Slot, read_header

T = TypeVar("T")
_INDEX: Final = "model.safetensors.index.json"
# Reads in flight: enough to keep a network disk busy; an expert's matrix is 3 MB.
_NUM_READERS: Final = 4
_NUM_AHEAD: Final = 16


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of one file."""

    path: Path
    slot: Slot


def read_stored(folder: Path) -> dict[str, Stored]:
    """Every tensor of a model folder by its name in the files; only headers are read.

    The files are those that model.safetensors.index.json lists, without one all of the folder.
    Raises DataError for a file that is missing or damaged, GateError for a tensor in two files.
    """
    stored: dict[str, Stored] = {}
    for path in _weight_files(folder):
        for slot in read_header(path).slots:
            if slot.name in stored:
                raise GateError(
                    f"{folder}: {slot.name} is in {stored[slot.name].path.name} and in {path.name}:"
                    " remove the files that are not of this model"
                )
            stored[slot.name] = Stored(path, slot)
    return stored


def _weight_files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if not index.exists():
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            raise DataError(f"{folder} holds no .safetensors file: give a model folder")
        return paths
    try:
        content: Any = json.loads(index.read_text(encoding="utf-8"))
        names = sorted({str(name) for name in content["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{index} is no readable index of shards: copy the model again") from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of {len(names)} shards in {_INDEX} are missing, first "
            f"{missing[0]}: copy the model again"
        )
    return [folder / name for name in names]


@dataclass(frozen=True, slots=True)
class Wanted(Generic[T]):
    """A tensor to read and whatever its reader needs to know about it."""

    stored: Stored
    note: T


def read_ahead(wanted: Iterable[Wanted[T]]) -> Iterator[tuple[T, Tensor]]:
    """Read tensors in the given order, a few at once and ahead of the caller, into CPU memory.

    Plain reads, not a memory map: a map counts as memory of the process, and page faults wait for
    network disks one small block at a time. Raises DataError when a file cannot be read to its end.
    """
    files: dict[Path, int] = {}
    with ExitStack() as stack, ThreadPoolExecutor(_NUM_READERS, "mmar-read") as pool:
        ahead: deque[tuple[T, Future[Tensor]]] = deque()
        for one in wanted:
            path = one.stored.path
            if path not in files:
                files[path] = _open(path)
                stack.callback(os.close, files[path])
            ahead.append((one.note, pool.submit(_read, files[path], one.stored)))
            if len(ahead) == _NUM_AHEAD:
                note, future = ahead.popleft()
                yield note, future.result()
        for note, future in ahead:
            yield note, future.result()


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): copy it again") from error


def _read(file: int, stored: Stored) -> Tensor:
    slot = stored.slot
    data = torch.empty(slot.size_bytes, dtype=torch.uint8)
    view, done = data.numpy().data, 0
    try:
        while done < slot.size_bytes:
            count = os.preadv(file, [view[done:]], slot.start + done)
            if not count:
                raise DataError(f"{stored.path} ends within {slot.name}: copy it again")
            done += count
    except OSError as error:
        raise DataError(
            f"{stored.path} cannot be read ({error.strerror}): copy it again"
        ) from error
    return data.view(DTYPES[slot.dtype]).reshape(slot.shape)
