"""Merging on a GPU gives what merging on the CPU gives."""

from pathlib import Path

import pytest
import torch

from mmar_jobs.cli import run_command
from tests import merge_cases

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)


def test_cuda_merges_as_the_cpu_does(tmp_path: Path) -> None:
    """No bf16 weight is further off than one step, and almost none is off at all."""
    base = merge_cases.sharded_base(tmp_path / "base", dtype=torch.bfloat16)
    adapter = merge_cases.adapter_for(base, tmp_path / "adapter")
    for device in ("cpu", "cuda"):
        arguments = [str(base), str(adapter), str(tmp_path / device), "--device", device]
        assert 0 == run_command("merge", arguments)
    on_cpu, on_cuda = (merge_cases.all_tensors(tmp_path / device) for device in ("cpu", "cuda"))
    num_off = 0
    for name, expected in on_cpu.items():
        torch.testing.assert_close(on_cuda[name], expected, rtol=2**-7, atol=1e-6)
        num_off += int((expected != on_cuda[name]).sum())
    assert num_off <= 1e-3 * sum(tensor.numel() for tensor in on_cpu.values())
