"""Files written piece by piece are safetensors files, and what is none is one clear error."""

import json
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load, save, save_file
from torch import Tensor

from mmar_jobs.errors import DataError
from mmar_jobs.qlora.tensor_file import DTYPES, read_header, read_tensor, write_tensors

DTYPE = st.sampled_from(sorted(DTYPES))
SHAPES = st.dictionaries(
    st.text("abc.é0", min_size=1), st.lists(st.integers(0, 3), min_size=1, max_size=3), max_size=5
)


def make(shapes: dict[str, list[int]], dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors of these shapes, each full of numbers of its own."""
    return {
        name: torch.full(tuple(shape), float(index + 1), dtype=dtype)
        for index, (name, shape) in enumerate(shapes.items())
    }


@given(SHAPES, DTYPE)
def test_the_package_reads_what_is_written(
    tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, list[int]], dtype: str
) -> None:
    """Names, shapes, numbers and metadata come back, through the package and through us."""
    path = tmp_path_factory.getbasetemp() / "written.safetensors"
    tensors = make(shapes, DTYPES[dtype])
    with path.open("wb") as file:
        write_tensors(
            file, shapes, tensors.values(), dtype=DTYPES[dtype], metadata={"k": "v\u00e9"}
        )
    read = load(path.read_bytes())
    assert tensors.keys() == read.keys()
    with safe_open(path, framework="pt") as opened:
        assert {"k": "v\u00e9"} == opened.metadata()
    header = read_header(path)
    assert list(shapes) == [slot.name for slot in header.slots] or not all(
        tensor.numel() for tensor in tensors.values()
    )
    with path.open("rb") as file:
        for slot in header.slots:
            assert torch.equal(tensors[slot.name], read[slot.name])
            assert torch.equal(tensors[slot.name], read_tensor(file, slot))


@given(SHAPES, DTYPE)
def test_we_read_what_the_package_writes(
    tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, list[int]], dtype: str
) -> None:
    """Every tensor is found at its place, also with empty ones between."""
    path = tmp_path_factory.getbasetemp() / "package.safetensors"
    tensors = make(shapes, DTYPES[dtype])
    save_file(tensors, path, metadata={"format": "pt"})
    header = read_header(path)
    assert tensors.keys() == {slot.name for slot in header.slots}
    assert {"format": "pt"} == header.metadata
    with path.open("rb") as file:
        for slot in header.slots:
            assert torch.equal(tensors[slot.name], read_tensor(file, slot))


@given(st.data())
def test_a_damaged_file_is_one_clear_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Cut anywhere, or with any byte of its header changed: read as it is, or a DataError."""
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    whole = save(make({"a": [2, 3], "b": [4]}, torch.float32), {"format": "pt"})
    cut = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:cut])
    with pytest.raises(DataError, match=r"damaged\.safetensors"):
        read_header(path)
    spoilt = bytearray(whole)
    spoilt[data.draw(st.integers(0, len(whole) - 41))] = data.draw(st.integers(0, 255))
    path.write_bytes(spoilt)
    with suppress(DataError):  # any other exception is a defect
        assert len(spoilt) == read_header(path).slots[-1].end


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "b": 3},
        {"a": {"dtype": "F32", "shape": [2]}},
        {"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}},
        {"__metadata__": 3, "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
        [],
        3,
    ],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path: Path, header: object) -> None:
    """Wrong sizes, gaps, missing and foreign fields."""
    text = json.dumps(header).encode()
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(DataError, match=r"odd\.safetensors"):
        read_header(path)


def test_one_tensor_exists_at_a_time(tmp_path: Path) -> None:
    """When the next tensor is asked for, the one before is gone."""
    alive: list[weakref.ref[Tensor]] = []

    def tensors() -> Iterator[Tensor]:
        for _ in range(5):
            assert all(reference() is None for reference in alive)
            tensor = torch.ones(3, dtype=torch.bfloat16)
            alive.append(weakref.ref(tensor))
            yield tensor
            del tensor

    shapes = {str(index): (3,) for index in range(5)}
    with (tmp_path / "file").open("wb") as file:
        write_tensors(file, shapes, tensors(), dtype=torch.bfloat16, metadata={})
    assert 5 == len(alive)
