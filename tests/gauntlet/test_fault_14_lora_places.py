"""Fault 14: names like q_proj also matched the audio tower, and nobody listed the matches."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mmar_jobs.errors import ExitCode
from mmar_jobs.qlora.audit import audit
from mmar_jobs.qlora.dropout import Dropout
from mmar_jobs.qlora.export import export_adapter, load_adapter
from mmar_jobs.qlora.lora import LoraLinear, LoraModel
from mmar_jobs.qlora.merge import merge_adapter
from mmar_jobs.qlora.recipes import TrainRecipe
from mmar_jobs.qlora.trainer import Surroundings, train
from tests import qlora_cases
from tests.gauntlet.planted import Stop, stopped

RECIPE = TrainRecipe(learning_rate=1e-2, examples_per_step=2, token_budget=64)
WEIGHTS = "adapter_model.safetensors"


def train_stopped(lora: LoraModel) -> Stop:
    """Training on a model that is wrapped wrongly."""
    rows, audio = qlora_cases.make_rows([(12, 4), (10, 5)])
    return stopped(lambda: train(lora, rows, RECIPE, audio=audio))


def wrap(lora: LoraModel, path: str) -> None:
    """Put LoRA on one more linear layer, as a target name that matches too much does."""
    base = lora.model.get_submodule(path)
    assert isinstance(base, nn.Linear)
    parent = lora.model.get_submodule(path.rpartition(".")[0]) if "." in path else lora.model
    extra = LoraLinear(base, 2, scaling=1.0, dropout=Dropout(0.0, seed=0, num_sites=8))
    setattr(parent, path.rpartition(".")[2], extra)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("audio_tower.layers.0.self_attn.q_proj", "audio tower"),
        ("audio_tower.layers.1.fc1", "audio tower"),
        ("audio_tower.proj1", "audio tower"),
        ("lm_head", "lm_head"),
    ],
)
def test_14_lora_anywhere_else_stops_training(path: str, kind: str) -> None:
    """The earlier attempt trained its own ears, and the server then ignored that part."""
    lora = qlora_cases.adapted(fill=False)
    wrap(lora, path)
    words = ("outside attention and experts", path, f"({kind})", "attach none")
    train_stopped(lora).says(ExitCode.DATA, *words)


def test_14_a_projection_that_was_missed_stops_training() -> None:
    """Names that match too little are as bad: half of the experts stayed as they were."""
    lora = qlora_cases.adapted(fill=False)
    del lora.model.model.layers[1].mlp.experts.lora
    stop = train_stopped(lora)
    stop.says(ExitCode.DATA, "1 projections carry no LoRA", "model.layers.1.mlp.experts")


def test_14_what_is_wrapped_is_listed() -> None:
    """The audit counts what is wrapped and trained: all of attention, all experts, no more."""
    found = audit(qlora_cases.adapted().model)
    assert (8, 4) == (found.row("attention").num_wrapped, found.row("experts").num_wrapped)
    assert 0 == found.row("audio tower").num_wrapped == found.row("audio tower").num_trained
    assert 0 == found.row("router").num_wrapped == found.row("lm_head").num_wrapped
    assert () == found.unwrapped == found.wrongly_trained


@pytest.mark.parametrize(
    "extra",
    [
        "base_model.model.audio_tower.layers.0.self_attn.q_proj",
        "base_model.model.audio_tower.layers.0.fc1",
        "base_model.model.lm_head",
    ],
)
def test_14_an_adapter_with_more_than_ours_is_neither_trained_on_nor_served(
    tmp_path: Path, extra: str
) -> None:
    """A foreign adapter that also changes the tower must not lose that part without a word."""
    export_adapter(qlora_cases.adapted(), tmp_path, "tiny")
    tensors = load_file(tmp_path / WEIGHTS)
    tensors[f"{extra}.lora_A.weight"] = torch.ones(3, 8)
    tensors[f"{extra}.lora_B.weight"] = torch.ones(8, 3)
    save_file(tensors, tmp_path / WEIGHTS)
    lora = qlora_cases.adapted()
    stopped(lambda: load_adapter(lora, tmp_path)).says(ExitCode.DATA, "2 tensors", extra)
    plain = qlora_cases.thinker()
    short = extra.removeprefix("base_model.model.")
    stopped(lambda: merge_adapter(plain, tmp_path)).says(ExitCode.DATA, short)


def test_14_a_tower_that_changes_is_noticed() -> None:
    """Its digest is taken before and after: untouched is proven, not assumed."""
    lora = qlora_cases.adapted(fill=False)
    rows, audio = qlora_cases.make_rows([(12, 4), (10, 5)])
    bias = lora.model.get_submodule("audio_tower.proj1").bias

    def meddle(*_: object) -> None:
        with torch.no_grad():
            bias.add_(1e-3)

    around = Surroundings(on_step=meddle)
    stop = stopped(lambda: train(lora, rows, RECIPE, audio=audio, around=around))
    stop.says(ExitCode.DATA, "frozen parameter audio_tower.proj1.bias", "written to in training")
