"""Reading a model folder's weight files: damaged ones are one line, whatever is wrong with them."""

import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmar_jobs.errors import DataError, MmarError
from mmar_jobs.qlora.load import outline_thinker
from mmar_jobs.qlora.weight_files import read_ahead, read_stored
from mmar_jobs.weights import WEIGHTS_FILE
from tests import qlora_cases as cases


@given(share=st.floats(0, 1, exclude_max=True))
def test_cut_files_are_one_line(tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    """A copy that broke off anywhere, in its header too."""
    folder = tmp_path_factory.mktemp("cut")
    data = (cases.base_folder() / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(data[: int(share * len(data))])
    with pytest.raises(DataError, match=rf"^{folder}.*copy it again$"):
        read_stored(folder)


@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_flipped_headers_never_crash(
    tmp_path_factory: pytest.TempPathFactory, share: float, bit: int
) -> None:
    """One flipped bit in the header: an expected error, or another header that is checked later."""
    folder = tmp_path_factory.mktemp("flipped")
    data = bytearray((cases.base_folder() / WEIGHTS_FILE).read_bytes())
    header_bytes = 8 + int.from_bytes(data[:8], "little")
    data[int(share * header_bytes)] ^= 1 << bit
    (folder / WEIGHTS_FILE).write_bytes(data)
    with suppress(MmarError):
        assert read_stored(folder)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    """The headers were fine; the bytes are gone when they are wanted."""
    folder = shutil.copytree(cases.base_folder(), tmp_path / "m")
    outline = outline_thinker(folder, dtype=torch.float32, quantization="none")
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"model\.safetensors ends within "):
        list(read_ahead(outline.wanted))
