"""The adapter's files: PEFT reads them and computes what we compute; so does the merged model."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmar_jobs.errors import DataError
from mmar_jobs.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from mmar_jobs.qlora.adapter_file import expert_fastest, expert_slowest, from_expert_fastest
from mmar_jobs.qlora.export import export_adapter, load_adapter
from mmar_jobs.qlora.merge import merge_adapter
from mmar_jobs.qlora.recipes import LoraRecipe
from tests import qlora_cases as cases

TOLERANCE = 1e-5
IDS = torch.arange(3, 20)[None]
# PEFT looks for rank patterns among target_modules only, and warns about those of target_parameters
# although it applies them (tuners_utils.py, 0.21.2).
pytestmark = pytest.mark.filterwarnings(
    "ignore:The following (rank|alpha)_pattern keys:RuntimeWarning"
)


def logits_of(model: Any) -> Tensor:
    """Logits of fixed tokens."""
    with torch.no_grad():
        logits: Tensor = model(input_ids=IDS, use_cache=False).logits
    return logits


@pytest.mark.parametrize("rank", [3, 8])
def test_peft_computes_the_same_logits(rank: int, tmp_path: Path) -> None:
    """PEFT, loading the exported folder onto a fresh base, agrees with us, twice in a row."""
    lora = cases.adapted(LoraRecipe(rank=rank, alpha=2.5 * rank, dropout=0.1))
    export_adapter(lora, tmp_path, "tiny")
    expected = logits_of(lora.model)
    base = cases.thinker()
    assert (logits_of(base) - expected).abs().max() > 0.1
    peft_model = PeftModel.from_pretrained(base, str(tmp_path))
    for _ in range(2):
        assert (logits_of(peft_model) - expected).abs().max() <= TOLERANCE
    merged = peft_model.merge_and_unload()
    assert (logits_of(merged) - expected).abs().max() <= TOLERANCE


def test_peft_wraps_no_tower(tmp_path: Path) -> None:
    """PEFT makes LoRA layers for exactly the modules that we trained, none in a tower."""
    lora = cases.adapted()
    export_adapter(lora, tmp_path, "tiny")
    peft_model = PeftModel.from_pretrained(cases.thinker(), str(tmp_path))
    wrapped = {name for name, _ in peft_model.named_modules() if name.endswith("lora_A.default")}
    expected = {
        name.replace(".lora_A.weight", ".lora_A.default")
        for name in load_file(tmp_path / ADAPTER_WEIGHTS)
        if ".lora_A." in name
    }
    assert expected == wrapped


def test_every_factor_matters(tmp_path: Path) -> None:
    """Changing any single factor tensor changes our logits and PEFT's alike."""
    lora = cases.adapted()
    before = logits_of(lora.model)
    for name, factor in lora.factors().items():
        kept = factor.detach().clone()
        with torch.no_grad():
            factor.add_(0.3)
        assert (logits_of(lora.model) - before).abs().max() > 1e-3, name
        if ".layers.0." in name:
            export_adapter(lora, tmp_path / name, "tiny")
            peft_model = PeftModel.from_pretrained(cases.thinker(), str(tmp_path / name))
            difference = (logits_of(peft_model) - logits_of(lora.model)).abs().max()
            assert difference <= TOLERANCE, name
        with torch.no_grad():
            factor.copy_(kept)


def test_export_is_byte_stable(tmp_path: Path) -> None:
    """Equal factors give equal files; a changed factor gives another."""
    digests = []
    for folder in ("a", "b"):
        export_adapter(
            cases.adapted(), tmp_path / folder, "tiny", metadata={"run": "r", "iter": "1"}
        )
        digests.append(
            [
                hashlib.sha256((tmp_path / folder / file).read_bytes()).hexdigest()
                for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
            ]
        )
    assert digests[0] == digests[1]
    export_adapter(cases.adapted(seed=5), tmp_path / "c", "tiny")
    assert (tmp_path / "a" / ADAPTER_WEIGHTS).read_bytes() != (
        tmp_path / "c" / ADAPTER_WEIGHTS
    ).read_bytes()


def test_round_trip_is_exact(tmp_path: Path) -> None:
    """Exported and loaded again, every factor has the same bits."""
    lora = cases.adapted()
    export_adapter(lora, tmp_path, "tiny")
    again = cases.adapted(seed=9)
    load_adapter(again, tmp_path)
    for name, factor in lora.factors().items():
        assert torch.equal(factor, again.factors()[name]), name


def test_other_rank_is_refused(tmp_path: Path) -> None:
    """A parent adapter of another rank is a clear error."""
    export_adapter(cases.adapted(), tmp_path, "tiny")
    with pytest.raises(DataError, match="rank 3"):
        load_adapter(cases.adapted(LoraRecipe(rank=4, alpha=6.0)), tmp_path)


def test_missing_and_broken_adapters_are_refused(tmp_path: Path) -> None:
    """No folder, a truncated file and a missing tensor each say so in one line."""
    with pytest.raises(DataError, match="no readable adapter"):
        load_adapter(cases.adapted(), tmp_path / "none")
    export_adapter(cases.adapted(), tmp_path, "tiny")
    data = (tmp_path / ADAPTER_WEIGHTS).read_bytes()
    (tmp_path / ADAPTER_WEIGHTS).write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="no readable adapter"):
        merge_adapter(cases.thinker(), tmp_path)


def test_merged_in_place_equals_adapted(tmp_path: Path) -> None:
    """The base plus the adapter's delta gives the adapted model's logits."""
    lora = cases.adapted()
    export_adapter(lora, tmp_path, "tiny")
    model = cases.thinker()
    merge_adapter(model, tmp_path)
    assert (logits_of(model) - logits_of(lora.model)).abs().max() <= TOLERANCE


def test_merge_onto_another_model_is_refused(tmp_path: Path) -> None:
    """An adapter that names a projection which the base lacks is an error, not a partial merge."""
    export_adapter(cases.adapted(), tmp_path, "tiny")
    model = cases.thinker()
    del model.model.layers[1]
    with pytest.raises(DataError, match="lacks"):
        merge_adapter(model, tmp_path)


def test_config_says_what_peft_needs(tmp_path: Path) -> None:
    """Rank and alpha of gate_up are doubled, dropout is off, targets are full paths."""
    export_adapter(cases.adapted(), tmp_path, "tiny")
    config = json.loads((tmp_path / ADAPTER_CONFIG).read_text())
    assert list(config["rank_pattern"].values()) == [6]
    assert list(config["alpha_pattern"].values()) == [12.0]
    assert config["lora_dropout"] == 0.0
    assert all(name.startswith("model.layers.") for name in config["target_modules"])


@given(*(st.integers(1, 6) for _ in range(3)))
def test_stored_factors_are_what_was_stacked(num_experts: int, out: int, rank: int) -> None:
    """lora_B: column r·E + e is expert e's column r, and reading inverts writing; lora_A alike."""
    factor_EOR = torch.arange(num_experts * out * rank).view(num_experts, out, rank)
    stored = expert_fastest(factor_EOR)
    assert (out, rank * num_experts) == tuple(stored.shape)
    for expert in range(num_experts):
        for column in range(rank):
            expected = factor_EOR[expert, :, column]
            assert torch.equal(expected, stored[:, column * num_experts + expert])
    assert torch.equal(factor_EOR, from_expert_fastest(stored, num_experts))
    factor_ERI = factor_EOR.transpose(1, 2)
    stored = expert_slowest(factor_ERI)
    for expert in range(num_experts):
        for row in range(rank):
            assert torch.equal(factor_ERI[expert, row], stored[expert * rank + row])


def vllm_deltas(folder: Path, *, knows_patterns: bool) -> dict[str, Tensor]:
    """What vLLM adds to a layer's experts, (E, out, in), by its own reading of the two files.

    Written after _stack_moe_lora_weights (vllm/lora/model_manager.py) and PEFTHelper
    (vllm/lora/peft_helper.py); 0.29 to 0.31 scale by lora_alpha / r, 0.32 applies the patterns.
    """
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    state = load_file(folder / ADAPTER_WEIGHTS)
    deltas = {}
    for which, part in (("gate_up_proj", ".base_layer"), ("down_proj", "")):
        stem = f"base_model.model.model.layers.0.mlp.experts{part}"
        a, b = state[f"{stem}.lora_A.weight"], state[f"{stem}.lora_B.weight"]
        rank, alpha = config["r"], config["lora_alpha"]
        if knows_patterns:
            name = f"model.layers.0.mlp.experts.{which}"
            for key in config["rank_pattern"]:
                if re.match(rf"(.*\.)?({key})$", name):
                    rank, alpha = config["rank_pattern"][key], config["alpha_pattern"][key]
            assert rank * 8 == a.shape[0]
        a_ERI = a.reshape(8, -1, a.shape[-1])
        b_EOR = b.reshape(b.shape[0], -1, 8).permute(2, 0, 1)
        deltas[which] = b_EOR @ a_ERI * (alpha / rank)
    return deltas


@pytest.mark.parametrize("knows_patterns", [False, True])
def test_vllm_reads_what_was_trained(tmp_path: Path, knows_patterns: bool) -> None:
    """Its reading of our files, with and without patterns, gives scaling · B·A of every expert."""
    lora = cases.adapted()
    export_adapter(lora, tmp_path, "tiny")
    site: Any = lora.sites["model.layers.0.mlp.experts"]
    deltas = vllm_deltas(tmp_path, knows_patterns=knows_patterns)
    gate = site.gate_B @ site.gate_up_A[:, :3] * 2
    up = site.up_B @ site.gate_up_A[:, 3:] * 2
    torch.testing.assert_close(deltas["gate_up_proj"], torch.cat((gate, up), dim=1))
    torch.testing.assert_close(deltas["down_proj"], site.down_B @ site.down_A * 2)


def test_header_says_where_the_adapter_comes_from(tmp_path: Path) -> None:
    """One key of JSON: what the caller gives, and what the config must agree with."""
    export_adapter(cases.adapted(), tmp_path, "tiny", metadata={"run_id": "r", "iteration": "2"})
    with safe_open(tmp_path / ADAPTER_WEIGHTS, framework="pt") as file:
        told = json.loads(file.metadata()["mmar_jobs"])
    expected = {"run_id": "r", "iteration": "2", "format": "1", "rank": "3", "alpha": "6.0"}
    assert expected == told


def test_a_bfloat16_model_exports_bfloat16_at_little_cost(tmp_path: Path) -> None:
    """Rounding the factors moves the logits ten times less than rounding the merged weights.

    Measured on the embedded model, rank 16, an adapter that moves log-probabilities by 1.27 nats
    (rms): factors in bf16 cost 0.0015, merged weights in bf16 0.13, both 0.13.
    """
    lora = cases.adapted()
    with torch.no_grad():
        for name, factor in lora.factors().items():
            factor.mul_(0.002 if name.endswith("_B") else 1)  # a delta well below the weights
    expected = logits_of(lora.model)
    export_adapter(lora, tmp_path / "fp32", "tiny")
    merged = cases.thinker()
    merge_adapter(merged, tmp_path / "fp32")
    with torch.no_grad():
        for parameter in merged.model.layers.parameters():
            parameter.copy_(parameter.bfloat16())
    weights_cost = (logits_of(merged) - expected).square().mean().sqrt()
    lora.model.get_input_embeddings().bfloat16()
    export_adapter(lora, tmp_path / "bf16", "tiny")
    sizes = [(tmp_path / name / ADAPTER_WEIGHTS).stat().st_size for name in ("fp32", "bf16")]
    assert 0.5 <= sizes[1] / sizes[0] < 0.55
    merged = cases.thinker()
    merge_adapter(merged, tmp_path / "bf16")
    factors_cost = (logits_of(merged) - expected).square().mean().sqrt()
    assert 0 < factors_cost < weights_cost / 10
    again = cases.adapted(seed=9)
    load_adapter(again, tmp_path / "bf16")
    for name, factor in lora.factors().items():
        assert torch.equal(factor.bfloat16().float(), again.factors()[name]), name


def test_a_parent_with_nan_is_refused(tmp_path: Path) -> None:
    """Training would go on from it without a word and end with nothing."""
    lora = cases.adapted()
    with torch.no_grad():
        lora.factors()["model.layers.1.mlp.experts.up_B"][2, 3, 1] = torch.inf
    export_adapter(lora, tmp_path, "tiny")
    with pytest.raises(DataError, match=r"layers\.1\.mlp\.experts\.base_layer\.lora_B.*NaN or inf"):
        load_adapter(cases.adapted(), tmp_path)


def test_gate_and_up_that_share_rank_are_refused(tmp_path: Path) -> None:
    """Such an adapter merges, but our factors cannot hold it."""
    export_adapter(cases.adapted(), tmp_path, "tiny")
    tensors = load_file(tmp_path / ADAPTER_WEIGHTS)
    name = "base_model.model.model.layers.0.mlp.experts.base_layer.lora_B.weight"
    tensors[name][0, -1] = 0.5
    save_file(tensors, tmp_path / ADAPTER_WEIGHTS)
    with pytest.raises(DataError, match="share rank"):
        load_adapter(cases.adapted(), tmp_path)
    ours, peft_model = cases.thinker(), PeftModel.from_pretrained(cases.thinker(), str(tmp_path))
    merge_adapter(ours, tmp_path)
    assert (logits_of(ours) - logits_of(peft_model)).abs().max() <= TOLERANCE


def test_other_shapes_are_refused_before_a_factor_changes(tmp_path: Path) -> None:
    """A factor that could be broadcast into place is an error, and nothing was copied before."""
    export_adapter(cases.adapted(), tmp_path, "tiny")
    tensors = load_file(tmp_path / ADAPTER_WEIGHTS)
    name = "base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight"
    tensors[name] = tensors[name][:1].clone()
    save_file(tensors, tmp_path / ADAPTER_WEIGHTS)
    lora, before = cases.adapted(seed=9), cases.adapted(seed=9)
    with pytest.raises(DataError, match=r"v_proj.*\[1, 128\].*\[3, 128\]"):
        load_adapter(lora, tmp_path)
    for factor_name, factor in before.factors().items():
        assert torch.equal(factor, lora.factors()[factor_name])
    del tensors[name]
    save_file(tensors, tmp_path / ADAPTER_WEIGHTS)
    with pytest.raises(DataError, match=r"lacks .*v_proj"):
        load_adapter(lora, tmp_path)
