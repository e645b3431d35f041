"""Reading and writing .safetensors files piece by piece, so that no file is ever held in memory.

Not here: what the tensors mean. The safetensors package writes from tensors that all exist at once,
and in an order of its own; an adapter of 8 GB and a base of 61 GB need neither. Format:
https://github.com/huggingface/safetensors#format
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from torch import Tensor

from mmar_jobs.errors import DataError

DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
_METADATA: Final = "__metadata__"
_LENGTH_BYTES: Final = 8
_ALIGNMENT_BYTES: Final = 8
_MAX_HEADER_BYTES: Final = 100_000_000  # the limit of the safetensors package


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor of a file; its bytes are [start, end) of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Header:
    """`raw` is all of the file that comes before the tensors; `slots` are in order of bytes."""

    raw: bytes
    slots: tuple[Slot, ...]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """The header of a file; DataError unless its tensors fill the file without gap or overlap."""
    try:
        with path.open("rb") as file:
            head = file.read(_LENGTH_BYTES)
            size = int.from_bytes(head, "little")
            text = file.read(size) if size <= _MAX_HEADER_BYTES else b""
        if len(head) < _LENGTH_BYTES or len(text) < size:
            raise DataError(f"{path} is cut off or no safetensors file: copy it again")
        return _parse(head + text, path.stat().st_size)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is no readable safetensors file ({error}): copy it again"
        ) from None


def _parse(raw: bytes, file_bytes: int) -> Header:
    content: dict[str, Any] = json.loads(raw[_LENGTH_BYTES:])
    metadata = dict(content.pop(_METADATA, {}))
    slots = sorted(
        (_slot(name, fields, len(raw)) for name, fields in content.items()),
        key=lambda slot: (slot.start, slot.end),
    )
    ends = [len(raw), *(slot.end for slot in slots)]
    starts = [*(slot.start for slot in slots), file_bytes]
    if ends != starts:
        raise ValueError(f"its tensors end at byte {ends[-1]} of {file_bytes}, or leave gaps")
    return Header(raw, tuple(slots), metadata)


def _slot(name: str, fields: Mapping[str, Any], offset: int) -> Slot:
    start, end = fields["data_offsets"]
    shape = tuple(map(int, fields["shape"]))
    dtype = DTYPES.get(fields["dtype"])
    if dtype is not None and end - start != prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} has {end - start} bytes, which its shape contradicts")
    return Slot(name, fields["dtype"], shape, offset + start, offset + end)


def render_header(
    shapes: Mapping[str, Sequence[int]], dtype: torch.dtype, metadata: Mapping[str, str]
) -> bytes:
    """Header of a file that holds tensors of these shapes, in this order, all of one dtype."""
    sizes = [prod(shape) * dtype.itemsize for shape in shapes.values()]
    ends = [0]
    for size in sizes:
        ends.append(ends[-1] + size)
    content: dict[str, Any] = {_METADATA: dict(metadata)}
    for (name, shape), (start, end) in zip(shapes.items(), pairwise(ends), strict=True):
        fields = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        content[name] = fields
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def write_tensors(
    file: BinaryIO,
    shapes: Mapping[str, Sequence[int]],
    tensors: Iterable[Tensor],
    *,
    dtype: torch.dtype,
    metadata: Mapping[str, str],
) -> None:
    """Write a whole file; `tensors` come in the order of `shapes` and one is held at a time.

    Each is converted to `dtype` where it lies and then moved to the CPU.
    """
    file.write(render_header(shapes, dtype, metadata))
    coming = iter(tensors)
    # No loop variable for the tensor: it would keep the last one while the next is made.
    file.writelines(_checked_bytes(next(coming), dtype, tuple(shape)) for shape in shapes.values())


def _checked_bytes(tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> memoryview:
    assert shape == tuple(tensor.shape)
    return tensor_bytes(tensor.detach().to(dtype))


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, row-major, without a copy where it is that on the CPU already."""
    flat = tensor.cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data


def read_tensor(file: BufferedReader, slot: Slot) -> Tensor:
    """One tensor of an open file, on the CPU; the slot's dtype must be one of DTYPES."""
    data = torch.empty(slot.size_bytes, dtype=torch.uint8)
    file.seek(slot.start)
    if file.readinto(data.numpy().data) != slot.size_bytes:
        raise DataError(f"{file.name} is cut off at {slot.name}: it changed while it was read")
    return data.view(DTYPES[slot.dtype]).view(slot.shape)
