"""The command lines that serve a model follow from its shape and the node's memory."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mmar_jobs.base_model import model_digest
from mmar_jobs.cli import run_command
from mmar_jobs.engine.serving import (
    GIB,
    Node,
    Shape,
    Workload,
    engine_args,
    lay_out,
    lora_args,
    one_server,
)
from mmar_jobs.engine.serving_command import served_name
from mmar_jobs.engine.wire import MalformedReply, served_models
from mmar_jobs.errors import ExitCode, SettingsError
from mmar_jobs.identity import ModelIdentity
from tests.fakes import Fails
from tests.merge_cases import adapter_for, sharded_base

# Qwen3-Omni-30B-A3B-Thinking in bfloat16.
THINKER_30B = Shape(
    weight_bytes=61 * 10**9, num_layers=48, num_heads=32, num_kv_heads=4, head_dim=128
)
WORK = Workload(max_tokens=6000, mean_tokens=1500)


@pytest.mark.parametrize(
    ("node", "num_servers", "tensor_parallel"),
    [
        (Node(1, 141), 1, 1),
        (Node(8, 141), 8, 1),
        (Node(4, 80), 2, 2),
        (Node(2, 80), 1, 2),
        (Node(1, 80), 1, 1),
        (Node(4, 40), 1, 4),
    ],
    ids=["H200", "8xH200", "4xA100", "2xA100", "A100", "4xA100-40"],
)
def test_the_30b_model_on_known_nodes(node: Node, num_servers: int, tensor_parallel: int) -> None:
    """Enough sequences fit each server, over as few GPUs as that takes."""
    layout = lay_out(THINKER_30B, node, WORK)
    assert (num_servers, tensor_parallel) == (layout.num_servers, layout.tensor_parallel)
    assert 8064 == layout.max_model_len


def test_kv_cache_is_what_memory_leaves() -> None:
    """One H200: 129.7 GiB less 5 of overhead and 56.8 of weights at 96 KiB a token."""
    assert 98_304 == THINKER_30B.kv_bytes_per_token
    layout = lay_out(THINKER_30B, Node(1, 141), WORK)
    expected = (141 * 0.92 - 5 - 61e9 / GIB) * GIB / 98_304
    assert expected == pytest.approx(layout.kv_tokens, abs=1)
    assert layout.kv_tokens // (1500 + 32) == layout.max_num_seqs  # a 16th of a prompt each
    alone = lay_out(THINKER_30B, Node(1, 141), replace(WORK, num_draws=1))
    assert layout.kv_tokens // 2000 == alone.max_num_seqs


def test_a_small_model_is_bound_by_the_batch() -> None:
    """Where memory is plenty the number of sequences is vLLM's."""
    small = Shape(weight_bytes=10**7, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=32)
    layout = lay_out(small, Node(4, 80), Workload(max_tokens=64, mean_tokens=32))
    assert (4, 1, 1024, 2112) == (
        layout.num_servers,
        layout.tensor_parallel,
        layout.max_num_seqs,
        layout.max_model_len,
    )


def test_every_batch_has_its_cuda_graph() -> None:
    """Up to 512 sequences by vLLM's own default, beyond by a size that it captures."""
    flag = "--max-cudagraph-capture-size"
    found = {}
    for mean_tokens in (1500, 1000, 100):
        layout = lay_out(THINKER_30B, Node(1, 141), replace(WORK, mean_tokens=mean_tokens))
        args = engine_args(layout, "m", "n", dtype="bfloat16", thinking_budget=False)
        found[layout.max_num_seqs] = args[args.index(flag) + 1] if flag in args else None
    assert {484: None, 718: "720", 1024: "1024"} == found


def test_what_does_not_fit_is_a_setting() -> None:
    """The line says what is too large for what."""
    with pytest.raises(SettingsError, match=r"57 GiB of weights .* do not fit 1 x 40 GiB"):
        lay_out(THINKER_30B, Node(1, 40), WORK)


def test_heads_are_split_evenly() -> None:
    """No server keeps a KV head twice."""
    assert (1, 2, 4) == THINKER_30B.splits


def test_the_command_prints_a_line_a_server(
    model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each line stands alone: GPUs, name by hash, limits, port."""
    flags = ["--gpus", "2", "--max-tokens", "500", "--media-dir", "/srv/clips"]
    assert ExitCode.DONE == run_command("serve-args", [str(model_folder), *flags])
    lines = capsys.readouterr().out.splitlines()
    identity = ModelIdentity(base_digest=model_digest(model_folder))
    assert ["CUDA_VISIBLE_DEVICES=0", "CUDA_VISIBLE_DEVICES=1"] == [
        line.split(" vllm serve ")[0] for line in lines
    ]
    assert f"--served-model-name mmar-{identity.hash[:16]} " in lines[0]
    assert "--allowed-local-media-path /srv/clips" in lines[0]
    assert lines[0].endswith("--port 8000")
    assert lines[1].endswith("--port 8001")


def test_a_budget_of_thinking_needs_its_tags(
    model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server must know where thinking begins and ends, only where that was asked for."""
    for flags, expected in (([], False), (["--thinking-budget"], True)):
        assert ExitCode.DONE == run_command("serve-args", [str(model_folder), "--json", *flags])
        [server] = json.loads(capsys.readouterr().out)["servers"]
        assert expected == ("--reasoning-config" in server["args"])
    tags = json.loads(server["args"][server["args"].index("--reasoning-config") + 1])
    assert {"reasoning_start_str": "<think>", "reasoning_end_str": "</think>"} == tags


def test_the_command_prints_json_for_the_chart(
    model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same as one object."""
    assert ExitCode.DONE == run_command("serve-args", [str(model_folder), "--json"])
    told = json.loads(capsys.readouterr().out)
    [server] = told["servers"]
    assert [0] == server["gpus"]
    assert told["model"] == server["args"][server["args"].index("--served-model-name") + 1]


def test_a_folder_without_a_model_is_a_data_error(tmp_path: Path, fails: Fails) -> None:
    """It names the folder."""
    assert "holds no model" in fails(ExitCode.DATA, "serve-args", str(tmp_path))


def test_another_manifest_is_not_taken_for_a_merge(
    model_folder: Path, tmp_path: Path, fails: Fails
) -> None:
    """A folder with a foreign manifest.json has no known hash."""
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    (folder / "manifest.json").write_text("{}")
    assert "not the manifest of a merge" in fails(ExitCode.DATA, "serve-args", str(folder))


def test_a_merged_folder_is_named_by_base_and_adapter(tmp_path: Path) -> None:
    """The name is that of the model, not of the folder's bytes."""
    inputs = {"base": "b" * 64, "adapter": "a" * 64, "adapter_config": "c" * 64}
    (tmp_path / "manifest.json").write_text(
        json.dumps(
            {"stage": "merge", "fingerprint": "f", "recipe": {}, "inputs": inputs}
            | {"shards": [], "counts": {}, "metrics": {}, "placement": {}, "cost": {}}
        )
    )
    identity = ModelIdentity(base_digest="b" * 64, adapter_digest="a" * 64)
    assert f"mmar-{identity.hash[:16]}" == served_name(tmp_path)


def test_an_adapter_is_served_beside_its_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under the name that its merge would have, with room for the larger rank of gate and up."""
    base = sharded_base(tmp_path / "base")
    adapter = adapter_for(base, tmp_path / "adapter")
    merged = tmp_path / "merged"
    assert ExitCode.DONE == run_command("merge", [str(base), str(adapter), str(merged)])
    capsys.readouterr()
    flags = [str(base), "--adapter", str(adapter), "--json"]
    assert ExitCode.DONE == run_command("serve-args", flags)
    args = json.loads(capsys.readouterr().out)["servers"][0]["args"]
    assert f"{served_name(merged)}={adapter}" == args[args.index("--lora-modules") + 1]
    assert served_name(base) == args[args.index("--served-model-name") + 1]
    rank = json.loads((adapter / "adapter_config.json").read_text())["r"]
    assert int(args[args.index("--max-lora-rank") + 1]) >= 2 * rank


def test_an_adapter_of_another_base_is_not_served(
    model_folder: Path, tmp_path: Path, fails: Fails
) -> None:
    """It would answer, and nobody would know what."""
    adapter = adapter_for(sharded_base(tmp_path / "base"), tmp_path / "adapter")
    line = fails(ExitCode.DATA, "serve-args", str(model_folder), "--adapter", str(adapter))
    assert "was trained on another base" in line


def test_an_adapter_is_as_long_as_its_base() -> None:
    """VLLM lists it with no length of its own."""
    listing = {
        "data": [
            {"id": "mmar-base", "max_model_len": 2048, "parent": None},
            {"id": "mmar-child", "max_model_len": None, "parent": "mmar-base"},
        ]
    }
    assert {"mmar-base": 2048, "mmar-child": 2048} == served_models(listing)
    del listing["data"][0]
    with pytest.raises(MalformedReply):
        served_models(listing)


@pytest.mark.parametrize(("num_gpus", "used"), [(1, 1), (2, 2), (3, 2), (4, 4), (8, 4)])
def test_one_server_takes_the_gpus_that_heads_split_over(num_gpus: int, used: int) -> None:
    """The 30B model has four KV heads."""
    layout = one_server(THINKER_30B, Node(num_gpus, 141), WORK)
    assert (1, used) == (layout.num_servers, layout.tensor_parallel)


def test_vllm_takes_no_rank_above_its_own() -> None:
    """Such an adapter can be merged."""
    with pytest.raises(SettingsError, match="merge it"):
        lora_args("m", "/adapter", 513)
