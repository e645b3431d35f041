"""The adapter's files: PEFT reads them and computes what we compute; so does the merged model."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from mmar_jobs.errors import DataError
from mmar_jobs.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from mmar_jobs.qlora.adapter_file import expert_fastest, from_expert_fastest
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


def test_expert_fastest_is_invertible() -> None:
    """The stored order of lora_B, taken apart again, gives the stacked factor (E=5, R=3)."""
    factor_EOR = torch.arange(5 * 4 * 3.0).view(5, 4, 3)
    stored = expert_fastest(factor_EOR)
    assert stored.shape == (4, 15)
    assert torch.equal(stored[:, 0], factor_EOR[0, :, 0])
    assert torch.equal(stored[:, 1], factor_EOR[1, :, 0])
    assert torch.equal(factor_EOR, from_expert_fastest(stored, 5))
