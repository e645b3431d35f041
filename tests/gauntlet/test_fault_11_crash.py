"""Fault 11: a crash lost the round, and hours of generation with it."""

from collections.abc import Callable

import pytest

from mmar_jobs.engine import Request
from mmar_jobs.errors import ExitCode
from mmar_jobs.identity import ModelIdentity
from tests.fakes import Script, Track
from tests.gauntlet.conftest import HealthyRun
from tests.gauntlet.planted import NUM_CANDIDATES, Run

SHARDS = "part-*.jsonl.gz"


class Killed(BaseException):
    """The process is gone; nothing may catch it."""


def dies_after(run: Run, num_answers: int) -> Script:
    """A healthy model whose machine goes away in the middle of a shard."""
    num_said = 0

    def script(request: Request, draw: int, identity: ModelIdentity) -> str:
        nonlocal num_said
        num_said += 1
        if num_said > num_answers:
            raise Killed
        return run.exam.healthy(request, draw, identity)

    return script


def shards(run: Run) -> dict[str, bytes]:
    """The candidates of iteration 1, by name."""
    return {path.name: path.read_bytes() for path in run.path("iter-1/candidates").glob(SHARDS)}


def crash(action: Callable[[], object]) -> None:
    """Do what the machine does not survive."""
    with pytest.raises(Killed):
        action()


def test_11_a_killed_generate_goes_on_where_it_was(run_after: HealthyRun) -> None:
    """What was answered before the crash is kept, the rest is asked, and the bytes are equal."""
    run = run_after("generate")
    expected = shards(run)
    for path in run.path("iter-1/candidates").iterdir():
        path.unlink()
    crash(lambda: run.stage("generate", opener=run.opener(dies_after(run, 30))))
    kept = shards(run)
    assert {"part-00000-of-00003.jsonl.gz"} == kept.keys()
    assert kept.items() <= expected.items()
    opener = run.opener()
    run.stage("generate", opener=opener)
    assert 8 * NUM_CANDIDATES == len(opener.engines[0].asked)
    assert expected == shards(run)


def test_11_a_half_finished_round_is_never_read(run_after: HealthyRun) -> None:
    """Shards without a manifest are no artifact: the next stage waits for the rest of them."""
    run = run_after("ingest")
    crash(lambda: run.stage("generate", opener=run.opener(dies_after(run, 30))))
    stop = run.cli("filter")
    stop.says(ExitCode.DATA, "no finished", "iter-1/candidates", "run the generate stage first")


def test_11_a_crash_is_not_resumed_under_other_settings(run_after: HealthyRun) -> None:
    """Half a round of one recipe and half of another would be a round of none."""
    run = run_after("ingest")
    crash(lambda: run.stage("generate", opener=run.opener(dies_after(run, 30))))
    stop = run.cli("generate", "--sampling.temperature", "1.3")
    stop.says(ExitCode.SETTINGS, "sampling.temperature: 0.9 -> 1.3", "--run-id")


def test_11_a_killed_training_goes_on_to_the_same_adapter(run_after: HealthyRun) -> None:
    """Factors, optimiser and order come back from the checkpoint: the adapter is the same."""
    run = run_after("train")
    adapter = run.path("iter-1/adapter")
    expected = (adapter / "adapter_model.safetensors").read_bytes()
    for path in adapter.iterdir():
        path.unlink()
    # 24 examples are encoded before the three steps; the machine goes away after the second.
    track = Track(raise_at=26, error=KeyboardInterrupt())  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        run.stage("train", track=track)
    assert run.path("iter-1/checkpoint/step-00000002.json").is_file()
    resumed = Track()
    run.stage("train", track=resumed)
    assert expected == (adapter / "adapter_model.safetensors").read_bytes()
    assert [] == list(run.path("iter-1/checkpoint").iterdir())
    assert 3 == resumed.done["iteration 1: training"]


@pytest.mark.parametrize(
    ("shard", "stage"),
    [
        ("iter-1/candidates/part-00001-of-00003.jsonl.gz", "filter"),
        ("iter-1/examples/part-00000-of-00001.jsonl.gz", "train"),
        ("iter-1/adapter/adapter_model.safetensors", "evaluate"),
        ("questions/benchmark.jsonl.gz", "infer"),
    ],
)
def test_11_a_damaged_shard_is_named(run_after: HealthyRun, shard: str, stage: str) -> None:
    """One bit lost on a disk is found before it is trained on or served."""
    before = {"filter": "generate", "train": "filter", "evaluate": "train", "infer": "evaluate"}
    run = run_after(before[stage])
    data = bytearray(run.path(shard).read_bytes())
    data[len(data) // 2] ^= 1
    run.path(shard).write_bytes(data)
    run.cli(stage).says(ExitCode.DATA, shard, "changed or damaged", "delete the artifact")
