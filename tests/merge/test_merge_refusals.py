"""`mmar-jobs merge`: planted faults, each one line with the right exit code."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmar_jobs.errors import ExitCode
from mmar_jobs.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tests import merge_cases


def edited_adapter(adapter: Path, folder: Path, edit: Callable[[dict[str, Tensor]], None]) -> Path:
    """A copy of an adapter with other tensors and the same metadata."""
    shutil.copytree(adapter, folder)
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / ADAPTER_WEIGHTS)
    return folder


def _drop(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: [tensors.pop(key) for key in list(tensors) if name in key] and None


def _poison(tensors: dict[str, Tensor]) -> None:
    tensors["base_model.model.model.layers.1.mlp.experts.lora_B.weight"][3, 5] = torch.nan


def _widen(tensors: dict[str, Tensor]) -> None:
    key = "base_model.model.model.layers.0.self_attn.o_proj.lora_B.weight"
    tensors[key] = torch.zeros(tensors[key].shape[0] + 1, 3)


def _add(tensors: dict[str, Tensor]) -> None:
    tensors["base_model.model.lm_head.lora_A.weight"] = torch.zeros(3, 128)


def _add_layer(tensors: dict[str, Tensor]) -> None:
    for factor in ("A", "B"):
        key = f"base_model.model.model.layers.{{}}.self_attn.q_proj.lora_{factor}.weight"
        tensors[key.format(7)] = tensors[key.format(0)].clone()


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (_add, "lm_head"),
        (_add_layer, "the base lacks 1 projections"),
        (_drop("layers.1.self_attn.k_proj"), "nothing for 1 projections"),
        (_drop("layers.1.mlp.experts"), "nothing for 24 projections"),
        (_drop("layers.1.mlp.experts.base_layer"), "lacks a pair"),
        (_drop("layers.0.self_attn.v_proj.lora_B"), "lacks tensor"),
        (_widen, "o_proj is [128, 128] in the base and [129, 128] in the adapter"),
        (_poison, "NaN"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    base: Path,
    adapter: Path,
    tmp_path: Path,
    fails: Callable[..., str],
    edit: Callable[[dict[str, Tensor]], None],
    says: str,
) -> None:
    """Each fault is one line with exit code 3, and leaves no output."""
    odd = edited_adapter(adapter, tmp_path / "odd", edit)
    assert says in fails(ExitCode.DATA, base, odd, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_base_is_refused(
    base: Path, adapter: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    """Same names and shapes, one number changed: the digest tells."""
    other = shutil.copytree(base, tmp_path / "base")
    shard = min(other.glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert "trained on base" in fails(ExitCode.DATA, other, adapter, tmp_path / "out")


def test_config_and_weights_of_two_exports_are_refused(
    base: Path, adapter: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    """A config with another alpha would merge with another scale: both files say theirs."""
    odd = shutil.copytree(adapter, tmp_path / "odd")
    config = json.loads((odd / ADAPTER_CONFIG).read_text())
    (odd / ADAPTER_CONFIG).write_text(json.dumps(config | {"lora_alpha": 7.0}))
    assert "alpha" in fails(ExitCode.DATA, base, odd, tmp_path / "out")
    (odd / ADAPTER_CONFIG).write_text(json.dumps(config | {"use_rslora": True}))
    assert "use_rslora" in fails(ExitCode.DATA, base, odd, tmp_path / "out")
    (odd / ADAPTER_CONFIG).unlink()
    assert "no readable adapter" in fails(ExitCode.DATA, base, odd, tmp_path / "out")


def _spoil(base: Path, fault: str) -> None:
    shard = sorted(base.glob("*.safetensors"))[1]
    tensors = load_file(shard)
    if fault == "cut":
        shard.write_bytes(shard.read_bytes()[:-4])
    elif fault == "no header":
        shard.write_bytes(b"\x00" * 7)
    elif fault == "missing shard":
        shard.unlink()
    elif fault == "twice":
        (base / merge_cases.INDEX).unlink()
        shutil.copyfile(shard, base / "model-copy.safetensors")
    elif fault == "quantised":
        name = next(name for name in tensors if "experts" in name)
        save_file(tensors | {name: tensors[name].to(torch.int8)}, shard)
    elif fault == "half":
        save_file({name: tensor.half() for name, tensor in tensors.items()}, shard)
    elif fault == "bad index":
        (base / merge_cases.INDEX).write_text("[]")
    else:
        shutil.rmtree(base)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("cut", "copy it again"),
        ("no header", "copy it again"),
        ("missing shard", "copy the base again"),
        ("twice", "remove the shards"),
        ("quantised", "is I8"),
        ("half", "is F16"),
        ("bad index", "no readable index"),
        ("gone", "no folder"),
    ],
)
def test_a_broken_base_is_refused(
    base: Path, adapter: Path, tmp_path: Path, fails: Callable[..., str], fault: str, says: str
) -> None:
    """Each fault is one line with exit code 3 that names the file, and leaves no output."""
    broken = shutil.copytree(base, tmp_path / "base")
    _spoil(broken, fault)
    line = fails(ExitCode.DATA, broken, adapter, tmp_path / "out")
    assert says in line
    assert str(broken) in line
    assert not (tmp_path / "out").exists()


def test_too_little_space_is_said_before_anything_is_written(
    base: Path, adapter: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    """The line has both numbers, the exit code says that trying again may help."""
    large = shutil.copytree(base, tmp_path / "base")
    with (large / "huge.bin").open("wb") as file:
        file.truncate(2**43)
    line = fails(ExitCode.TRY_AGAIN, large, adapter, tmp_path / "out")
    assert "disk full" in line
    assert "8796.1 GB" in line
    assert [large] == list(tmp_path.iterdir())


def test_places_that_cannot_be_an_output_are_refused(
    base: Path, adapter: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    """The base itself, a folder in it, a file, a mount point, and both or none of the two ways."""
    assert "base's folder" in fails(ExitCode.SETTINGS, base, adapter, base)
    assert "base's folder" in fails(ExitCode.SETTINGS, base, adapter, base / "merged")
    assert "base's folder" in fails(ExitCode.SETTINGS, base, adapter, "--cache", base)
    (tmp_path / "file").write_text("")
    assert "no finished merge" in fails(ExitCode.SETTINGS, base, adapter, tmp_path / "file")
    fails(ExitCode.SETTINGS, base, adapter, tmp_path / "file" / "out")
    assert "mount point" in fails(ExitCode.SETTINGS, base, adapter, "/proc")
    assert "OUTPUT or --cache" in fails(ExitCode.SETTINGS, base, adapter)
    both = (base, adapter, tmp_path / "out", "--cache", tmp_path)
    assert "OUTPUT or --cache" in fails(ExitCode.SETTINGS, *both)
    assert "--threads" in fails(ExitCode.SETTINGS, base, adapter, tmp_path / "o", "--threads", 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_without_a_gpu_is_refused(
    base: Path, adapter: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    """Before any weight is read."""
    line = fails(ExitCode.SETTINGS, base, adapter, tmp_path / "out", "--device", "cuda")
    assert "finds no GPU" in line
