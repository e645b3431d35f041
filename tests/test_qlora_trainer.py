"""Training learns, resumes to the same bits, and cannot pass having done nothing."""

import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmar_jobs.errors import DataError, GateError, SettingsError, TryAgain
from mmar_jobs.layout import ADAPTER_WEIGHTS
from mmar_jobs.qlora.audit import audio_tower_digest, audit, check_audit
from mmar_jobs.qlora.checkpoint import Checkpoints
from mmar_jobs.qlora.export import export_adapter
from mmar_jobs.qlora.load import load_thinker
from mmar_jobs.qlora.lora import LoraModel, attach_lora
from mmar_jobs.qlora.optimizer import build_optimizer
from mmar_jobs.qlora.recipes import LoraRecipe, TrainRecipe, fingerprint
from mmar_jobs.qlora.step import StepResult, learning_rate_at
from mmar_jobs.qlora.trainer import Surroundings, TrainResult, train
from mmar_jobs.stages.checkpoints import StoreCheckpoints
from mmar_jobs.store import open_store
from tests import qlora_cases as cases

LORA = LoraRecipe(rank=3, alpha=6.0, dropout=0.1)
LENGTHS = [(12, 6), (10, 9), (15, 4)] * 4
RECIPE = TrainRecipe(
    learning_rate=1e-2, num_epochs=2, examples_per_step=4, token_budget=64, checkpoint_every_steps=2
)


class MemoryCheckpoints:
    """Checkpoints by step, all kept; `delay_s` makes saving slow."""

    def __init__(self, saved: dict[int, bytes] | None = None, *, delay_s: float = 0.0) -> None:
        self.saved = dict(saved or {})
        self.delay_s = delay_s

    def latest(self) -> int | None:
        """The last step saved."""
        return max(self.saved, default=None)

    @contextmanager
    def load(self, step: int) -> Iterator[Path]:
        """A temporary file."""
        with tempfile.NamedTemporaryFile() as file:
            file.write(self.saved[step])
            file.flush()
            yield Path(file.name)

    def save(self, step: int, parts: Iterator[memoryview]) -> None:
        """Keep all."""
        copied = []
        for part in parts:
            time.sleep(self.delay_s)
            copied.append(bytes(part))
        self.saved[step] = b"".join(copied)


def in_folder(path: Path) -> StoreCheckpoints:
    """Checkpoints in a folder; they survive the process."""
    return StoreCheckpoints(open_store(str(path)), "checkpoint")


def run(
    recipe: TrainRecipe = RECIPE,
    *,
    checkpoints: Checkpoints | None = None,
    stop_after: int | None = None,
    pause_s: float = 0.0,
) -> tuple[LoraModel, TrainResult]:
    """Train the tiny model on fixed rows; `stop_after` steps the machine is taken away."""
    lora = cases.adapted(LORA, fill=False)
    rows, audio = cases.make_rows(LENGTHS)

    def on_step(step: int, num_steps: int, result: StepResult) -> None:
        assert 1 <= step <= num_steps
        assert result.num_tokens > 0
        time.sleep(pause_s)
        if step == stop_after:
            raise TryAgain("preempted")

    around = Surroundings(checkpoints=checkpoints, on_step=on_step)
    result = train(lora, rows, recipe, audio=audio, around=around)
    return lora, result


def adapter_bytes(lora: LoraModel, folder: Path) -> bytes:
    """The exported weights."""
    export_adapter(lora, folder, "tiny")
    return (folder / ADAPTER_WEIGHTS).read_bytes()


def test_training_learns_and_counts() -> None:
    """On twelve examples the loss falls; counts, losses and tokens are those of the run."""
    _, result = run(replace(RECIPE, num_epochs=10, learning_rate=3e-2, decay="constant"))
    assert (result.num_steps, result.num_examples, result.num_dropped) == (30, 12, 0)
    assert sum(p + c for p, c in LENGTHS) * 10 == result.num_tokens
    assert len(result.losses) == len(result.grad_norms) == 30
    assert result.last_loss < result.first_loss - 0.3
    assert result.seconds > 0


@pytest.mark.parametrize("stop_after", [1, 3, 4])
def test_interrupted_and_resumed_is_bit_equal(stop_after: int, tmp_path: Path) -> None:
    """Taken away after any step, resumed in a fresh model: the same adapter, losses and counts."""
    expected, expected_result = run()
    checkpoints = MemoryCheckpoints()
    with pytest.raises(TryAgain):
        run(checkpoints=checkpoints, stop_after=stop_after)
    assert checkpoints.latest() == stop_after
    resumed, result = run(checkpoints=checkpoints)
    assert adapter_bytes(expected, tmp_path / "a") == adapter_bytes(resumed, tmp_path / "b")
    assert replace(expected_result, seconds=0) == replace(result, seconds=0)


def test_resumed_from_an_older_checkpoint_is_bit_equal(tmp_path: Path) -> None:
    """Steps after the last checkpoint are done again, to the same bits."""
    checkpoints = MemoryCheckpoints()
    expected, expected_result = run(checkpoints=checkpoints)
    assert [2, 4] == list(checkpoints.saved)
    resumed, result = run(checkpoints=MemoryCheckpoints({2: checkpoints.saved[2]}))
    assert adapter_bytes(expected, tmp_path / "a") == adapter_bytes(resumed, tmp_path / "b")
    assert expected_result.losses == result.losses


def test_killed_in_mid_run_and_resumed_is_bit_equal(tmp_path: Path) -> None:
    """A process killed by SIGKILL between checkpoints loses only the steps after the last one."""
    path = tmp_path / "checkpoint"
    code = (
        "import sys; from pathlib import Path; from tests.test_qlora_trainer import *; "
        "run(checkpoints=in_folder(Path(sys.argv[1])), pause_s=0.3)"
    )
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], cwd=root, env=environment
    ) as child:
        while in_folder(path).latest() is None and child.poll() is None:
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    resumed, _ = run(checkpoints=in_folder(path))
    expected, _ = run()
    assert adapter_bytes(expected, tmp_path / "a") == adapter_bytes(resumed, tmp_path / "b")


def test_two_runs_are_bit_equal_and_seeds_differ(tmp_path: Path) -> None:
    """The same recipe gives the same bytes; another order seed gives others."""
    first, again, other = run()[0], run()[0], run(replace(RECIPE, seed=1))[0]
    digests = [
        adapter_bytes(lora, tmp_path / str(i)) for i, lora in enumerate((first, again, other))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_bf16_base_follows_fp32() -> None:
    """With a bf16 base the factors stay fp32 and every step's loss is near the fp32 run's."""
    rows, audio = cases.make_rows(LENGTHS)
    model = load_thinker(cases.base_folder(), dtype=torch.bfloat16, device=torch.device("cpu"))
    lora = attach_lora(model, LORA, seed=0)
    result = train(lora, rows, RECIPE, audio=audio)
    assert {torch.float32} == {factor.dtype for factor in lora.factors().values()}
    _, expected = run()
    assert max(abs(a - b) for a, b in zip(expected.losses, result.losses, strict=True)) < 0.03


def test_checkpoint_of_another_recipe_is_refused() -> None:
    """Another learning rate or other rows must not go on from a checkpoint; another cadence may."""
    checkpoints = MemoryCheckpoints()
    run(checkpoints=checkpoints)
    with pytest.raises(SettingsError, match="another recipe"):
        run(replace(RECIPE, learning_rate=2e-2), checkpoints=MemoryCheckpoints(checkpoints.saved))
    run(replace(RECIPE, checkpoint_every_steps=1), checkpoints=MemoryCheckpoints(checkpoints.saved))


def test_damaged_checkpoint_is_named() -> None:
    """A truncated checkpoint is a DataError, not a traceback and not a fresh start."""
    checkpoints = MemoryCheckpoints()
    run(checkpoints=checkpoints)
    with pytest.raises(DataError, match="damaged"):
        run(checkpoints=MemoryCheckpoints({4: checkpoints.saved[4][:500]}))


def test_nothing_to_train_is_an_error() -> None:
    """No examples, or only over-long ones, never end in an untrained adapter."""
    lora = cases.adapted(LORA, fill=False)
    rows, audio = cases.make_rows(LENGTHS)
    with pytest.raises(GateError, match="nothing to train: 0 examples"):
        train(lora, [], RECIPE, audio=audio)
    with pytest.raises(GateError, match="12 of them longer than a row of 10"):
        train(lora, rows, replace(RECIPE, token_budget=10), audio=audio)


def test_nothing_trained_is_an_error() -> None:
    """A learning rate that moves no factor fails after the run."""
    with pytest.raises(GateError, match=r"nothing was trained|still zero"):
        run(replace(RECIPE, learning_rate=1e-60))


def test_loss_that_is_not_finite_is_an_error() -> None:
    """A broken embedding stops the run at its step and names questions."""
    lora = cases.adapted(LORA, fill=False)
    rows, audio = cases.make_rows(LENGTHS)
    audio["clip3"] = audio["clip3"] * math.nan
    with pytest.raises(GateError, match=r"step \d+: loss nan .* q3"):
        train(lora, rows, RECIPE, audio=audio)


def test_frozen_parameter_that_changes_is_an_error() -> None:
    """A write to a norm or to the audio tower in training is caught by the end of the run."""
    for part in ("model.norm", "audio_tower.ln_post"):
        lora = cases.adapted(LORA, fill=False)
        rows, audio = cases.make_rows(LENGTHS)
        weight = lora.model.get_submodule(part).weight

        def meddle(
            _step: int, _num_steps: int, _result: StepResult, w: torch.Tensor = weight
        ) -> None:
            with torch.no_grad():
                w.add_(1e-3)

        with pytest.raises(GateError, match=f"frozen parameter {part}"):
            train(lora, rows, RECIPE, audio=audio, around=Surroundings(on_step=meddle))


def test_audit_of_a_proper_model() -> None:
    """Only LoRA is trained: every projection wrapped, tower, router, embeddings and head frozen."""
    lora = cases.adapted(LORA)
    found = audit(lora.model)
    check_audit(found)
    total = sum(factor.numel() for factor in lora.factors().values())
    assert total == sum(row.num_trained for row in found.rows)
    assert (found.row("attention").num_wrapped, found.row("experts").num_wrapped) == (2 * 4, 2 * 2)
    for kind in ("audio tower", "router", "embeddings", "lm_head", "norms"):
        assert found.row(kind).num_parameters > 0
        assert found.row(kind).num_trained == 0
    assert {"float32"} == found.row("LoRA of experts").dtypes
    assert found.row("other").num_parameters == found.row("vision tower").num_parameters == 0


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("audio_tower.proj1", "audio tower"),
        ("model.layers.0.mlp.gate", "router"),
        ("model.embed_tokens", "embeddings"),
        ("lm_head", "lm_head"),
        ("model.layers.1.self_attn.q_proj.base", "attention"),
    ],
)
def test_training_refuses_a_part_that_must_be_frozen(part: str, kind: str) -> None:
    """Each part that must stay frozen is named when it is not."""
    lora = cases.adapted(LORA)
    rows, audio = cases.make_rows(LENGTHS)
    lora.model.get_submodule(part).requires_grad_(requires_grad=True)
    with pytest.raises(GateError, match=rf"outside LoRA are trained, first .*\({kind}\)"):
        train(lora, rows, RECIPE, audio=audio)


def test_audit_refuses_a_missed_projection_and_a_frozen_factor() -> None:
    """An expert layer or attention projection without LoRA, or a frozen factor, stops the run."""
    lora = cases.adapted(LORA)
    lora.sites["model.layers.1.mlp.experts"].requires_grad_(requires_grad=False)
    with pytest.raises(GateError, match="LoRA of experts are frozen"):
        check_audit(audit(lora.model))
    del lora.model.model.layers[1].mlp.experts.lora
    with pytest.raises(GateError, match=r"model\.layers\.1\.mlp\.experts"):
        check_audit(audit(lora.model))
    with pytest.raises(GateError, match="10 projections carry no LoRA"):
        check_audit(audit(cases.thinker()))


def test_detach_restores_the_base() -> None:
    """After detach the model has its first logits, no LoRA, and can be wrapped again."""
    model = cases.thinker()
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        lora = attach_lora(model, LORA, seed=0)
        cases.fill_factors(lora, seed=1)
        assert (model(input_ids=ids).logits - before).abs().max() > 0.1
        assert model.model.config._experts_implementation == "mmar_qlora"
        lora.detach()
        assert model.model.config._experts_implementation != "mmar_qlora"
        assert torch.equal(model(input_ids=ids).logits, before)
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    attach_lora(model, LORA, seed=0)
    with pytest.raises(DataError, match="already carries LoRA"):
        attach_lora(model, LORA, seed=0)


def test_fresh_lora_changes_nothing() -> None:
    """B starts at zero: the adapted model has the base's logits; A is drawn from the seed."""
    model = cases.thinker()
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        lora = attach_lora(model, LORA, seed=0)
        assert (model(input_ids=ids).logits - before).abs().max() < 1e-5
    again = cases.adapted(LORA, seed=0, fill=False)
    other = cases.adapted(LORA, seed=1, fill=False)
    for name, factor in lora.factors().items():
        assert torch.equal(factor, again.factors()[name])
        assert name.endswith("_B") or not torch.equal(factor, other.factors()[name])


def test_tower_digest_sees_one_bit() -> None:
    """The digest of the audio tower changes with any of its weights and with no other."""
    model = cases.thinker()
    before = audio_tower_digest(model)
    with torch.no_grad():
        model.lm_head.weight.add_(1)
        assert audio_tower_digest(model) == before
        model.audio_tower.proj2.bias[0] += 1e-6
    assert audio_tower_digest(model) != before


def test_learning_rate_schedule() -> None:
    """Linear up to the peak, then a cosine towards zero, or constant."""
    recipe = TrainRecipe(learning_rate=1.0, warmup_fraction=0.2)
    rates = [learning_rate_at(step, 10, recipe) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 0 < rates[-1] < 0.1
    constant = replace(recipe, decay="constant")
    assert [learning_rate_at(step, 10, constant) for step in range(2, 10)] == [1.0] * 8


def test_missing_bitsandbytes_is_a_settings_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The 8-bit optimizer without its library says what to do."""
    monkeypatch.delitem(sys.modules, "mmar_jobs.qlora.adamw8bit", raising=False)
    # What Python calls not importable.
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim.adamw", None)
    factors = cases.adapted(LORA).factors().values()
    with pytest.raises(SettingsError, match=r"needs bitsandbytes.* choose adamw"):
        build_optimizer(factors, replace(RECIPE, optimizer="adamw8bit"))


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0.0},
        {"num_epochs": 0},
        {"warmup_fraction": 2.0},
        {"token_budget": 0},
        {"betas": (0.9, 1.0)},
    ],
)
def test_wrong_recipes_are_refused(change: dict[str, Any]) -> None:
    """A value out of range is a SettingsError naming the setting."""
    with pytest.raises(SettingsError, match=next(iter(change))):
        replace(RECIPE, **change)
    with pytest.raises(SettingsError, match="rank"):
        LoraRecipe(rank=0)


def test_fingerprint_sees_the_recipe_not_the_placement() -> None:
    """What changes the adapter changes the fingerprint; the checkpoint cadence does not."""
    base = fingerprint(LORA, RECIPE, "d")
    assert base == fingerprint(LORA, replace(RECIPE, checkpoint_every_steps=9), "d")
    others = {
        fingerprint(replace(LORA, rank=4), RECIPE, "d"),
        fingerprint(LORA, replace(RECIPE, weighting="token"), "d"),
        fingerprint(LORA, RECIPE, "e"),
        base,
    }
    assert len(others) == 4
