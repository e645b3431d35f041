"""`mmar-jobs merge`: what it writes, what it keeps after a stop, and what it refuses."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmar_jobs.artifact import MANIFEST, begin
from mmar_jobs.base_model import model_digest
from mmar_jobs.cli import run_command
from mmar_jobs.errors import ExitCode
from mmar_jobs.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from mmar_jobs.qlora.load import load_thinker
from mmar_jobs.qlora.lora import LoraModel
from mmar_jobs.store import open_store
from tests import merge_cases, qlora_cases
from tests.store.conftest import BUCKET, ENVIRONMENT, moto_server
from tests.test_imports import imported_by

TOLERANCE = 1e-5
IDS = torch.arange(3, 20)[None]


def merge(*arguments: object) -> int:
    """Run the command in this process."""
    return run_command("merge", [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base in four shards, one layer's experts in two of them."""
    return merge_cases.sharded_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of `base`, E != R."""
    return merge_cases.adapter_for(base, tmp_path_factory.mktemp("adapter") / "adapter")


@pytest.fixture
def fails(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a merge that must fail with a code and one line, which it returns."""

    def run(code: ExitCode, *arguments: object) -> str:
        capfd.readouterr()
        assert code == merge(*arguments)
        written = capfd.readouterr()
        assert "" == written.out
        lines = [line for line in written.err.splitlines() if not line.startswith("{")]
        assert 1 == len(lines), written.err
        assert lines[0].startswith("mmar-jobs merge: ")
        return lines[0]

    return run


def logits_of(model: Any) -> Tensor:
    """Logits of fixed tokens."""
    with torch.no_grad():
        logits: Tensor = model(input_ids=IDS, use_cache=False).logits
    return logits


def test_experts_of_one_layer_span_two_shards(base: Path) -> None:
    """What the other tests rely on."""
    index = json.loads((base / merge_cases.INDEX).read_text())["weight_map"]
    shards = {index[name] for name in index if ".layers.0.mlp.experts." in name}
    assert 2 <= len(shards) < merge_cases.NUM_SHARDS == len(set(index.values()))


def test_merged_folder_computes_what_the_adapted_model_computes(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    """It loads like the base and gives the logits of the model that carries LoRA."""
    assert ExitCode.DONE == merge(base, adapter, tmp_path / "out")
    expected = logits_of(qlora_cases.adapted().model)
    merged = load_thinker(tmp_path / "out", dtype=torch.float32, device=torch.device("cpu"))
    assert (logits_of(qlora_cases.thinker()) - expected).abs().max() > 0.1
    assert (logits_of(merged) - expected).abs().max() <= TOLERANCE


def test_merged_folder_has_the_files_and_headers_of_the_base(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    """All but projections is equal byte for byte: names, order, dtypes, config, tokenizer."""
    out = tmp_path / "out"
    merge(base, adapter, out)
    before, after = merge_cases.all_bytes(base), merge_cases.all_bytes(out)
    assert before.keys() | {MANIFEST} == after.keys()
    for name, data in before.items():
        if not name.endswith(".safetensors"):
            assert data == after[name], name
            continue
        header = slice(0, 8 + int.from_bytes(data[:8], "little"))
        assert data[header] == after[name][header], name
        assert len(data) == len(after[name])
    old, new = merge_cases.all_tensors(base), merge_cases.all_tensors(out)
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    projections = {name for name in old if "self_attn" in name or ".experts." in name}
    assert {n for n in projections if ".model.layers." in n and "norm" not in n} == changed


def test_manifest_names_inputs_and_every_file(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Digests of base, adapter and of each written file; equal merges are equal folders."""
    merge(base, adapter, tmp_path / "one")
    merge(base, adapter, tmp_path / "two", "--threads", 1)
    one = merge_cases.all_bytes(tmp_path / "one")
    assert one == merge_cases.all_bytes(tmp_path / "two")
    manifest = json.loads(one[MANIFEST])
    assert model_digest(base) == manifest["inputs"]["base"]
    assert one.keys() - {MANIFEST} == {shard["name"] for shard in manifest["shards"]}
    key = f"{tmp_path.name}/one"
    store = open_store(str(tmp_path.parent))
    from mmar_jobs.artifact import require_artifact

    require_artifact(store, key, stage="merge").verify()


def test_bfloat16_is_rounded_once(adapter: Path, tmp_path: Path) -> None:
    """Every merged weight is the bf16 number next to W + scaling · B·A in fp64."""
    base = merge_cases.sharded_base(tmp_path / "base", dtype=torch.bfloat16)
    adapter = merge_cases.adapter_for(base, tmp_path / "adapter")
    merge(base, adapter, tmp_path / "out")
    old, new = merge_cases.all_tensors(base), merge_cases.all_tensors(tmp_path / "out")
    lora = qlora_cases.adapted()
    num_off, num_all = 0, 0
    for layer in range(2):
        site: Any = lora.sites[f"model.layers.{layer}.mlp.experts"]
        for expert in range(8):
            name = f"thinker.model.layers.{layer}.mlp.experts.{expert}.up_proj.weight"
            up_A, up_B = site.gate_up_A[expert, 3:].double(), site.up_B[expert].double()
            exact = old[name].double() + 2 * (up_B @ up_A)
            assert torch.bfloat16 == new[name].dtype
            num_off += int((exact.bfloat16() != new[name]).sum())
            num_all += exact.numel()
            half_step = exact.abs() * 2**-8 * 1.001 + 1e-7
            assert ((exact - new[name].double()).abs() <= half_step).all(), name
    assert num_off <= num_all * 1e-3


def test_a_finished_merge_is_verified_and_kept(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second call writes nothing, says so, and prints the same folder."""
    merge(base, adapter, tmp_path / "out")
    assert f"{tmp_path / 'out'}\n" == capsys.readouterr().out
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert ExitCode.DONE == merge(base, adapter, tmp_path / "out", "--json")
    told = json.loads(capsys.readouterr().out)
    assert (str(tmp_path / "out"), True) == (told["path"], told["was_finished"])
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert ["out"] == [path.name for path in tmp_path.iterdir()]


def test_cache_is_named_by_the_models_hash(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sixteen characters of the hash over base and adapter; other factors get another folder."""
    merge(base, adapter, "--cache", tmp_path, "--json")
    first = json.loads(capsys.readouterr().out)
    assert str(tmp_path / first["model_hash"][:16]) == first["path"]

    def change(lora: LoraModel) -> None:
        next(iter(lora.factors().values())).add_(1)

    other = merge_cases.adapter_for(base, tmp_path / "other", change=change)
    merge(base, other, "--cache", tmp_path, "--json")
    assert json.loads(capsys.readouterr().out)["path"] != first["path"]


def test_a_changed_output_is_noticed(
    base: Path, adapter: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    """One flipped byte of a finished folder is an error that names the file."""
    out = tmp_path / "out"
    merge(base, adapter, out)
    shard = sorted(out.glob("*.safetensors"))[2]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert shard.name in fails(ExitCode.DATA, base, adapter, out)


def test_other_inputs_in_the_output_are_refused(
    base: Path, adapter: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    """Another adapter, the same factors under another config, and a foreign folder are named."""
    merge(base, adapter, tmp_path / "out")

    def change(lora: LoraModel) -> None:
        next(iter(lora.factors().values())).add_(1)

    other = merge_cases.adapter_for(base, tmp_path / "other", change=change)
    assert "adapter: " in fails(ExitCode.SETTINGS, base, other, tmp_path / "out")
    same = shutil.copytree(adapter, tmp_path / "same")
    config = json.loads((same / ADAPTER_CONFIG).read_text())
    (same / ADAPTER_CONFIG).write_text(json.dumps(config))
    assert "adapter_config: " in fails(ExitCode.SETTINGS, base, same, tmp_path / "out")
    assert "no finished merge" in fails(ExitCode.SETTINGS, base, adapter, tmp_path / "other")


def stopped_merge(base: Path, adapter: Path, out: Path, share: float) -> None:
    """Merge until `share` of all bytes are written, then die like a killed process."""
    code = f"""
import os, pathlib
from contextlib import contextmanager
from mmar_jobs.qlora.merge_run import Placement, find_adapter, merge_model

@contextmanager
def track(label, total):
    left = [{share} * total]
    def advance(num_done):
        left[0] -= num_done
        if left[0] <= 0:
            os.kill(os.getpid(), 9)
    yield advance

merge_model(pathlib.Path({str(base)!r}), find_adapter({str(adapter)!r}),
    output=pathlib.Path({str(out)!r}), cache=None, placement=Placement(track=track))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert -9 == ended.returncode, ended.stderr.decode()


def test_a_killed_merge_goes_on_where_it_was(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Nothing looks finished, what is finished is kept, the bytes are those of a whole merge."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    merge(base, adapter, whole)
    stopped_merge(base, adapter, out, 0.8)
    assert not out.exists()
    partial = tmp_path / "out.partial"
    kept = {path: path.stat().st_mtime_ns for path in partial.glob("*.safetensors")}
    assert kept
    damaged = min(kept)
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    half_written = [path for path in partial.iterdir() if path.name.startswith(".mmar-tmp-")]
    assert 1 == len(half_written)
    assert ExitCode.DONE == merge(base, adapter, out)
    assert merge_cases.all_bytes(whole) == merge_cases.all_bytes(out)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "whole"}
    for path, stamp in kept.items():
        assert (stamp == (out / path.name).stat().st_mtime_ns) == (path != damaged), path


def test_an_unfinished_merge_of_other_inputs_is_refused(
    base: Path, adapter: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    """Its files are of no use and may be somebody's: the folder is named, not overwritten."""
    stopped_merge(base, adapter, tmp_path / "out", 0.1)

    def change(lora: LoraModel) -> None:
        next(iter(lora.factors().values())).add_(1)

    other = merge_cases.adapter_for(base, tmp_path / "other", change=change)
    assert "out.partial" in fails(ExitCode.SETTINGS, base, other, tmp_path / "out")
    (tmp_path / "out.partial" / ".mmar-merge.json").write_text("{")
    assert "damaged" in fails(ExitCode.DATA, base, adapter, tmp_path / "out")


def test_a_merge_killed_in_its_last_moment_keeps_every_file(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    """The manifest is there and the folder has not got its name yet: nothing is written again."""
    merge(base, adapter, tmp_path / "out")
    whole = merge_cases.all_bytes(tmp_path / "out")
    stamps = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.s*")}
    (tmp_path / "out").rename(tmp_path / "out.partial")
    assert ExitCode.DONE == merge(base, adapter, tmp_path / "out")
    assert whole == merge_cases.all_bytes(tmp_path / "out")
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.s*")}
    assert stamps == kept


def test_a_folder_of_somebody_elses_is_not_built_in(
    base: Path, adapter: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    """What would become part of the merged model without a word is refused."""
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "notes.txt").write_text("mine")
    assert "no unfinished merge" in fails(ExitCode.SETTINGS, base, adapter, tmp_path / "out")
    assert "mine" == (tmp_path / "out.partial" / "notes.txt").read_text()


@pytest.mark.slow
def test_killed_again_and_again_at_any_moment(base: Path, adapter: Path, tmp_path: Path) -> None:
    """A merge of 300 MB, killed at twelve moments, ends with the bytes of one left alone."""
    large = shutil.copytree(base, tmp_path / "base")
    shard = max(large.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    tensors = load_file(shard) | {"talker.ballast": torch.zeros(75_000_000)}
    (large / merge_cases.INDEX).unlink()
    save_file(tensors, shard)
    own = merge_cases.adapter_for(large, tmp_path / "adapter")
    merge(large, own, tmp_path / "whole")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mmar_jobs", "merge", *map(str, (large, own, out))]
    num_killed = 0
    for _ in range(40):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while child.poll() is None and not (tmp_path / "out.partial").exists():
            time.sleep(0.005)
        time.sleep(0.03 * (num_killed % 12))
        child.kill()
        if child.wait() == 0:
            break
        num_killed += 1
        assert not out.exists()
        if num_killed == 12:
            merge(large, own, out)
            break
    assert num_killed >= 3
    assert merge_cases.all_bytes(tmp_path / "whole") == merge_cases.all_bytes(out)


def test_two_merges_into_one_cache_do_the_work_once(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    """Processes that start together end with one whole folder, and no litter."""
    command = [sys.executable, "-m", "mmar_jobs", "merge", str(base), str(adapter)]
    children = [
        subprocess.Popen(
            [*command, "--cache", str(tmp_path / "cache"), "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for _ in range(2)
    ]
    told = [child.communicate()[0] for child in children]
    assert [0, 0] == [child.returncode for child in children]
    paths = {json.loads(line)["path"] for line in told}
    assert [Path(path) for path in paths] == list((tmp_path / "cache").iterdir())
    assert [False, True] == sorted(json.loads(line)["was_finished"] for line in told)


def test_threads_that_merge_into_one_output_take_turns(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    """Eight at once: all succeed, the folder is that of one, lock and partial folder are gone."""
    codes: list[int] = []
    out = tmp_path / "out"
    threads = [
        threading.Thread(target=lambda: codes.append(merge(base, adapter, out))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [ExitCode.DONE] * 8 == codes
    assert [out] == list(tmp_path.iterdir())
    assert ExitCode.DONE == merge(base, adapter, out)


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


def test_a_base_of_more_than_weights_is_copied_whole(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    """Links are followed, folders come along, a downloader's hidden folder does not."""
    rich = tmp_path / "base"
    rich.mkdir()
    for path in base.iterdir():
        (rich / path.name).symlink_to(path)
    for name in ("assets/voice.bin", ".cache/huggingface/x.lock", ".gitattributes"):
        (rich / name).parent.mkdir(parents=True, exist_ok=True)
        (rich / name).write_bytes(name.encode())
    assert ExitCode.DONE == merge(rich, adapter, tmp_path / "out")
    written = merge_cases.all_bytes(tmp_path / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    expected = {path.name for path in base.iterdir()}
    assert expected | {MANIFEST, "assets/voice.bin", ".gitattributes"} == written.keys()


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


def test_a_merge_imports_no_more_than_it_computes_with() -> None:
    """--help and wrong flags start without torch, merging without transformers and peft."""
    assert not imported_by("mmar_jobs.qlora.merge_command") & {"torch", "transformers", "peft"}
    assert not imported_by("mmar_jobs.qlora.merge_run") & {"transformers", "peft", "boto3"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_without_a_gpu_is_refused(
    base: Path, adapter: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    """Before any weight is read."""
    line = fails(ExitCode.SETTINGS, base, adapter, tmp_path / "out", "--device", "cuda")
    assert "finds no GPU" in line


def test_an_empty_folder_may_be_the_output(base: Path, adapter: Path, tmp_path: Path) -> None:
    """It is what `mkdir -p` leaves."""
    (tmp_path / "out").mkdir()
    assert ExitCode.DONE == merge(base, adapter, tmp_path / "out")
    assert (tmp_path / "out" / MANIFEST).is_file()


def stored_adapter(adapter: Path, root: Path, *, stage: str = "train") -> str:
    """The adapter as a finished artifact in a store; its address."""
    key = "runs/r/iter-1/adapter"
    draft: Any = begin(open_store(str(root)), key, stage=stage, recipe={}, inputs={})
    for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
        draft.upload(adapter / name, name)
    draft.finish([ADAPTER_WEIGHTS, ADAPTER_CONFIG], counts={}, metrics={}, placement={}, cost={})
    return f"{root}/{key}"


def test_an_artifact_in_a_folder_is_checked_against_its_manifest(
    base: Path, adapter: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    """A whole one is merged from where it lies, a damaged one is refused."""
    address = stored_adapter(adapter, tmp_path / "store")
    assert ExitCode.DONE == merge(base, address, tmp_path / "out")
    config = Path(address) / ADAPTER_CONFIG
    config.write_text(config.read_text() + " ")
    assert "differs from its manifest" in fails(ExitCode.DATA, base, address, tmp_path / "two")


def test_an_artifact_in_a_bucket_is_downloaded_once(
    base: Path, adapter: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    """The cache ends as from the local adapter; when it is full, no adapter is needed any more."""
    stored_adapter(adapter, tmp_path / "store")
    merge(base, adapter, "--cache", tmp_path / "expected")
    with pytest.MonkeyPatch.context() as patch, moto_server() as endpoint_url:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        client = boto3.client("s3", endpoint_url=endpoint_url)
        client.create_bucket(Bucket=BUCKET)
        root = tmp_path / "store"
        for path in filter(Path.is_file, root.rglob("*")):
            key = path.relative_to(root).as_posix()
            client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())
        address = f"s3://{BUCKET}/runs/r/iter-1/adapter"
        given = (base, address, "--cache", tmp_path / "cache", "--endpoint-url", endpoint_url)
        assert ExitCode.DONE == merge(*given)
        expected = merge_cases.all_bytes(tmp_path / "expected")
        assert expected == merge_cases.all_bytes(tmp_path / "cache")
        key = f"runs/r/iter-1/adapter/{ADAPTER_WEIGHTS}"
        client.put_object(Bucket=BUCKET, Key=key, Body=b"damaged")
        assert ExitCode.DONE == merge(*given)
        other = (base, address, "--cache", tmp_path / "two", "--endpoint-url", endpoint_url)
        fails(ExitCode.DATA, *other)
        nowhere = (base, f"{address}s", tmp_path / "o", "--endpoint-url", endpoint_url)
        assert "no finished artifact" in fails(ExitCode.DATA, *nowhere)
