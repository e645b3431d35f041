"""Checkpoints: made in a thread, durable or an error, torn ones never read, resumed to the bit."""

import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mmar_jobs.errors import DataError, MmarError, SettingsError, TryAgain
from mmar_jobs.qlora.checkpoint import Progress, Snapshot
from mmar_jobs.qlora.optimizer import build_optimizer, optimizer_state, restore_optimizer
from mmar_jobs.qlora.recipes import TrainRecipe
from mmar_jobs.stages.checkpoints import StoreCheckpoints
from mmar_jobs.store import Store, open_store
from tests import qlora_cases as cases
from tests.test_qlora_trainer import MemoryCheckpoints, adapter_bytes, run

RECIPE = TrainRecipe(
    learning_rate=1e-2, num_epochs=2, examples_per_step=4, token_budget=64, checkpoint_every_steps=2
)


@dataclass
class FailingStore:
    """A store whose writes of states fail from call `first_failure` on, counted from 1."""

    inner: Store
    error: MmarError
    first_failure: int = 1
    num_calls: int = 0

    def write_parts(self, key: str, parts: Iterator[memoryview]) -> None:
        """Take some parts, then fail as S3 and full disks do."""
        self.num_calls += 1
        if self.num_calls >= self.first_failure:
            next(iter(parts))
            raise self.error
        self.inner.write_parts(key, parts)

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return open_store(str(tmp_path / "store"))


def kept(store: Store, *, key: str = "checkpoint") -> StoreCheckpoints:
    """Checkpoints in a store."""
    return StoreCheckpoints(store, key)


def parts(*texts: bytes) -> Iterator[memoryview]:
    """Bytes as the parts of a state."""
    return (memoryview(text) for text in texts)


def test_a_checkpoint_comes_back_and_replaces_the_one_before(store: Store) -> None:
    """The newest is loaded; of the older nothing stays once it is durable."""
    checkpoints = kept(store)
    assert checkpoints.latest() is None
    checkpoints.save(2, parts(b"two"))
    checkpoints.save(10, parts(b"te", b"n"))
    assert checkpoints.latest() == 10
    with checkpoints.load(10) as path:
        assert path.read_bytes() == b"ten"
    assert len(store.list("")) == 2
    checkpoints.clear()
    assert [] == store.list("")


def test_a_torn_state_is_never_taken_for_a_checkpoint(store: Store) -> None:
    """A kill between state and manifest leaves the one before; the next save removes the rest."""
    checkpoints = kept(store)
    checkpoints.save(2, parts(b"two"))
    store.write("checkpoint/step-00000004.safetensors", b"fou")
    assert checkpoints.latest() == 2
    checkpoints.save(6, parts(b"six"))
    assert ["checkpoint/step-00000006.json", "checkpoint/step-00000006.safetensors"] == store.list(
        ""
    )


def test_a_failed_save_keeps_the_one_before(store: Store) -> None:
    """Nothing is removed, and nothing named, before the new state is durable."""
    checkpoints = kept(store)
    checkpoints.save(2, parts(b"two"))
    failing = StoreCheckpoints(FailingStore(store, TryAgain("disk full")), "checkpoint")  # type: ignore[arg-type]
    with pytest.raises(TryAgain, match="disk full"):
        failing.save(4, parts(b"four"))
    assert checkpoints.latest() == 2
    with checkpoints.load(2) as path:
        assert path.read_bytes() == b"two"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("step-00000002.safetensors", b"twO"),
        ("step-00000002.safetensors", b"tw"),
        ("step-00000002.json", b"{"),
        ("step-00000002.json", b"[]"),
        ("step-00000002.json", b'{"sha256": 1}'),
    ],
)
def test_a_damaged_checkpoint_stops_and_says_what_to_delete(
    store: Store, name: str, data: bytes
) -> None:
    """One changed byte, a missing one or a broken manifest is one line, never a fresh start."""
    checkpoints = kept(store)
    checkpoints.save(2, parts(b"two"))
    store.write(f"checkpoint/{name}", data)
    assert checkpoints.latest() == 2
    with pytest.raises(DataError, match=r"damaged.* delete ") as caught, checkpoints.load(2):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [TryAgain("disk full: cannot write x"), TryAgain("S3 answers 500"), SettingsError("no")],
)
def test_an_error_of_the_writer_ends_the_run_at_the_next_step(
    store: Store, error: MmarError
) -> None:
    """It comes out as it is; the checkpoint before it is kept and resumed from."""
    failing = FailingStore(store, error, first_failure=2)
    recipe = replace(RECIPE, checkpoint_every_steps=1)
    with pytest.raises(type(error), match=re.escape(str(error))):
        run(recipe, checkpoints=kept(failing), pause_s=0.05)  # type: ignore[arg-type]
    assert kept(store).latest() == 1
    _, resumed = run(recipe, checkpoints=kept(store))
    assert run(recipe)[1].losses == resumed.losses


def test_training_goes_on_while_a_checkpoint_is_written() -> None:
    """A slow writer delays nobody until the next checkpoint, which waits; both hold their step."""
    checkpoints = MemoryCheckpoints(delay_s=0.01)
    expected, _ = run()
    lora, result = run(checkpoints=checkpoints)
    assert [2, 4] == list(checkpoints.saved)
    for step in (2, 4):
        again, resumed = run(checkpoints=MemoryCheckpoints({step: checkpoints.saved[step]}))
        assert result.losses == resumed.losses
        for name, factor in expected.factors().items():
            assert torch.equal(factor, again.factors()[name])
            assert torch.equal(factor, lora.factors()[name])


def test_a_stop_while_a_checkpoint_is_written_saves_that_very_step() -> None:
    """The stop waits for the one that is under way and then saves its own."""
    checkpoints = MemoryCheckpoints(delay_s=0.01)
    with pytest.raises(TryAgain, match="preempted"):
        run(checkpoints=checkpoints, stop_after=3)
    assert [2, 3] == list(checkpoints.saved)


class Refusing(MemoryCheckpoints):
    """Takes its time, then fails."""

    def save(self, step: int, parts: Iterator[memoryview]) -> None:
        """Fail late."""
        time.sleep(0.2)
        raise TryAgain("disk full")

    def load(self, step: int) -> AbstractContextManager[Path]:
        """There is none."""
        raise AssertionError(step)


def test_the_last_checkpoints_error_is_not_lost() -> None:
    """Also when the run ends before the writer does: what could not be saved is said."""
    with pytest.raises(TryAgain, match="disk full"):
        run(replace(RECIPE, checkpoint_every_steps=5), checkpoints=Refusing())


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_resumed_is_bit_equal_with_either_optimizer(optimizer: str, tmp_path: Path) -> None:
    """State of 32 and of 8 bits (and of small tensors, which stay at 32) comes back exactly."""
    recipe = replace(RECIPE, optimizer=optimizer)
    expected, expected_result = run(recipe)
    checkpoints = MemoryCheckpoints()
    with pytest.raises(TryAgain):
        run(recipe, checkpoints=checkpoints, stop_after=3)
    resumed, result = run(recipe, checkpoints=checkpoints)
    assert adapter_bytes(expected, tmp_path / "a") == adapter_bytes(resumed, tmp_path / "b")
    assert expected_result.losses == result.losses


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_a_state_of_other_factors_is_refused(optimizer: str) -> None:
    """A missing, an unknown or a misshapen tensor is a DataError, never a partly restored state."""
    factors = {
        "a": torch.nn.Parameter(torch.randn(80, 80)),
        "b": torch.nn.Parameter(torch.randn(3)),
    }
    recipe = replace(RECIPE, optimizer=optimizer)
    made = build_optimizer(factors.values(), recipe)
    for factor in factors.values():
        factor.grad = torch.randn_like(factor)
    made.step()
    tensors, numbers = optimizer_state(made, factors)
    fresh = build_optimizer(factors.values(), recipe)
    restore_optimizer(fresh, factors, tensors, numbers)
    again, _ = optimizer_state(fresh, factors)
    assert all(torch.equal(tensors[name], again[name]) for name in tensors)
    name = next(name for name in tensors if name.startswith("a."))
    others = [
        {key: value for key, value in tensors.items() if key != name},
        tensors | {"c.exp_avg": torch.zeros(3)},
        tensors | {name: torch.zeros(7, 9)},
    ]
    for other in others:
        with pytest.raises(DataError, match="the checkpoint"):
            restore_optimizer(build_optimizer(factors.values(), recipe), factors, other, numbers)


def test_a_state_is_a_plain_safetensors_file(tmp_path: Path) -> None:
    """Any reader of that format opens it: nothing in it is code."""
    lora = cases.adapted()
    optimizer = build_optimizer(lora.factors().values(), RECIPE)
    snapshot = Snapshot()
    reference = {"old": torch.tensor([-0.5, -2.0])}
    snapshot.take(lora, optimizer, Progress(), reference=reference, fingerprint="f" * 64)
    path = tmp_path / "state"
    path.write_bytes(b"".join(snapshot.parts()))
    with safe_open(path, framework="pt") as file:
        for name, factor in lora.factors().items():
            assert torch.equal(factor, file.get_tensor(f"factor.{name}"))
        assert torch.equal(reference["old"], file.get_tensor("reference.old"))


def test_a_snapshot_does_not_move_with_the_training() -> None:
    """What is written is the state when it was taken, whatever the factors become meanwhile."""
    lora = cases.adapted()
    optimizer = build_optimizer(lora.factors().values(), RECIPE)
    snapshot = Snapshot()
    snapshot.take(lora, optimizer, Progress(), reference={}, fingerprint="f")
    before = b"".join(snapshot.parts())
    with torch.no_grad():
        for factor in lora.factors().values():
            factor.add_(1)
    assert before == b"".join(snapshot.parts())
    snapshot.take(lora, optimizer, Progress(), reference={}, fingerprint="f")
    assert before != b"".join(snapshot.parts())
