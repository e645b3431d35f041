"""`mmar-jobs merge`: what it writes, and from where."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from torch import Tensor

from mmar_jobs.artifact import MANIFEST, begin
from mmar_jobs.base_model import model_digest
from mmar_jobs.errors import ExitCode
from mmar_jobs.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from mmar_jobs.qlora.load import load_thinker
from mmar_jobs.store import open_store
from tests import merge_cases, qlora_cases
from tests.merge_cases import merge
from tests.store.conftest import BUCKET, ENVIRONMENT, moto_server
from tests.test_imports import imported_by

TOLERANCE = 1e-5
IDS = torch.arange(3, 20)[None]


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


def test_a_merge_imports_no_more_than_it_computes_with() -> None:
    """--help and wrong flags start without torch, merging without transformers and peft."""
    assert not imported_by("mmar_jobs.qlora.merge_command") & {"torch", "transformers", "peft"}
    assert not imported_by("mmar_jobs.qlora.merge_run") & {"transformers", "peft", "boto3"}


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
