"""Tests of what unexpected exceptions mean: a line and a code where known, else a traceback."""

import errno
import os
from pathlib import Path

import pytest
import torch

from mmar_jobs.errors import ExitCode
from mmar_jobs.failures import explain


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (errno.EACCES, ExitCode.SETTINGS, "correct the path or its permissions"),
        (errno.EROFS, ExitCode.SETTINGS, "read-only file system"),
        (errno.ENOENT, ExitCode.SETTINGS, "no such file or directory"),
        (errno.ENOSPC, ExitCode.TRY_AGAIN, "disk full"),
        (errno.EDQUOT, ExitCode.TRY_AGAIN, "disk full"),
        (errno.EIO, ExitCode.TRY_AGAIN, "input/output error: check the disk"),
    ],
)
def test_os_errors_are_told_apart(number: int, code: ExitCode, words: str) -> None:
    """What another try cannot change is a setting; what may pass is worth another try."""
    found = explain(OSError(number, os.strerror(number), "/srv/x"))
    assert found is not None
    assert code == found.exit_code
    assert words in str(found)
    assert "/srv/x" in str(found)
    assert "\n" not in str(found)


def test_os_error_without_a_path_has_none() -> None:
    """Some calls do not know which file it was."""
    found = explain(OSError(errno.EIO, os.strerror(errno.EIO)))
    assert str(found).startswith("input/output error: ")


def test_real_missing_file_is_a_settings_error(tmp_path: Path) -> None:
    """As Python raises it."""
    with pytest.raises(FileNotFoundError) as caught:
        (tmp_path / "none").read_bytes()
    assert str(explain(caught.value)).startswith(f"{tmp_path / 'none'}: no such file")


def test_out_of_memory_is_a_settings_error() -> None:
    """Python's own and torch's real one: the same command would need as much again."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55)
    on_gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")
    for error in (MemoryError(), caught.value, on_gpu):
        found = explain(error)
        assert found is not None
        assert ExitCode.SETTINGS == found.exit_code
        assert "--optim.token-budget" in str(found)
        assert ("nvidia-smi" in str(found)) == (error is on_gpu)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("shapes differ"), OSError(errno.EINVAL, "invalid"), KeyError("x"), OSError("x")],
)
def test_defect_is_not_explained(error: Exception) -> None:
    """What has no known meaning keeps its traceback."""
    assert explain(error) is None
