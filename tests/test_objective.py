"""Tests of --objective through the stages: filter rewards, train learns, and each refuses a mix-up.

The real tiny model answers; a policy gradient learns from its tokens, which no script has.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mmar_jobs.artifact import Artifact, require_artifact
from mmar_jobs.cli import run_command
from mmar_jobs.errors import ExitCode
from mmar_jobs.examples import read_examples
from mmar_jobs.layout import STEPS, adapter_key, candidates_key, examples_key, muted_key
from mmar_jobs.manifest import canonical_json
from mmar_jobs.records import Candidate, PolicyExample
from mmar_jobs.store import open_store
from mmar_jobs.tiny import tiny_model_folder
from mmar_jobs.tiny.build import build_world

RUN_ID = "objective"
COMMON = {"run-id": RUN_ID, "prompt.version": "baseline"}
MODEL = {"model": tiny_model_folder(), "engine.threads": 1}
TRAIN = {
    "lora.quantization": "none",
    "lora.rank": 4,
    "optim.token-budget": 2048,
    "optim.learning-rates": 1e-3,
    "grpo.learning-rates": 1e-3,
    "grpo.num-epochs": 2,
    "checkpoint-every-steps": 2,
}
DRAWN = {"sampling.num-candidates": 8, "sampling.max-tokens": 96}
HEARING = {"objective": "grpo", "reward.audio-dependence": 0.5}


def command(name: str, store: Path, values: dict[str, Any]) -> int:
    """Run one stage as a user does; returns its exit code."""
    common = {"run-id": RUN_ID} if name in ("ingest", "report") else COMMON
    known = {"store": store} | common | values
    return run_command(
        name, [part for key, value in known.items() for part in (f"--{key}", str(value))]
    )


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the candidates of twelve questions; to be copied."""
    folder = tmp_path_factory.mktemp("objective")
    world = build_world(folder / "world", seed=3, num_train=12, num_heldout=4, num_benchmark=4)
    sources = {"questions": world.train, "heldout": world.heldout, "benchmark": world.benchmark}
    store = folder / "store"
    assert ExitCode.DONE == command("ingest", store, sources)
    assert ExitCode.DONE == command("generate", store, MODEL | DRAWN | HEARING)
    return store


@pytest.fixture
def store(generated: Path, tmp_path: Path) -> Path:
    """A copy of its own."""
    return Path(shutil.copytree(generated, tmp_path / "store"))


def artifact(store: Path, key: str, stage: str) -> Artifact:
    """A finished artifact."""
    return require_artifact(open_store(str(store)), key, stage=stage)


def examples_of(store: Path) -> Artifact:
    """What filter made."""
    return artifact(store, examples_key(RUN_ID, 1), "filter")


@pytest.mark.parametrize("objective", ["grpo", "rest+grpo"])
def test_objective_goes_from_filter_to_adapter(store: Path, objective: str) -> None:
    """Rewards make groups, groups make steps; counts, recipes and metrics say so."""
    chosen = {"objective": objective}
    assert ExitCode.DONE == command("filter", store, chosen)
    examples = examples_of(store)
    found = list(read_examples(examples))
    assert all(isinstance(example, PolicyExample) for example in found)
    counts = examples.manifest.counts
    assert counts["num_groups"] == 12
    assert 0 < counts["num_flat_groups"] < 12
    assert counts["num_examples"] == len(found)
    assert counts["num_examples"] + examples.manifest.metrics["drops"]["flat_group"] == 96
    assert (objective == "rest+grpo") == any(example.weight for example in found)
    assert ExitCode.DONE == command("train", store, MODEL | TRAIN | chosen)
    adapter = artifact(store, adapter_key(RUN_ID, 1), "train").manifest
    assert objective == adapter.recipe["objective"]
    assert adapter.recipe["grpo"]["num_epochs"] == 2
    assert adapter.metrics["candidates"]["engine_max_abs_nats"] < 1e-3
    steps = json.loads((store / adapter_key(RUN_ID, 1) / STEPS).read_text())
    assert len(steps["losses"]) == len(steps["metrics"]) == adapter.counts["num_steps"] > 0
    page = store.parent / "report.html"
    assert ExitCode.DONE == command("report", store, {"output": page})
    told = page.read_text().partition("Trainer from engine</th>")[2].partition("</table>")[0]
    kl, mean = adapter.metrics["candidates"]["engine_kl"], examples.manifest.metrics["mean_reward"]
    flat = counts["num_flat_groups"]
    for cell in ("12", f"{flat}", f"{mean:.3f}", f"{kl:.1e}", "0.0%"):
        assert f'<td class="n">{cell}</td>' in told
    assert "epochs 2" in page.read_text()
    assert "learning rate 0.001" in page.read_text()


@pytest.mark.parametrize("objective", ["rest", "grpo", "rest+grpo"])
def test_control_tokens_are_dropped_before_training(
    store: Path, objective: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A candidate that opens a turn or stands for sound is counted by filter, not met by train."""
    old = artifact(store, candidates_key(RUN_ID, 1), "generate")
    candidates = list(old.records(Candidate))
    said = iter(["<|im_start|>", "<|audio_pad|>", "<|im_end|>"] * len(candidates))
    odd = [
        one.model_copy(
            update={"completion": one.completion.replace("</think>", f"{next(said)}</think>")}
        )
        if one.draw % 2
        else one
        for one in candidates
    ]
    rewrite(store, old, odd)
    chosen = {"objective": objective, "filter.strategy": "all"}
    assert ExitCode.DONE == command("filter", store, chosen)
    num_dropped = examples_of(store).manifest.metrics["drops"]["control_token"]
    assert 0 < num_dropped <= sum(one.draw % 2 for one in candidates)
    assert f"control_token {num_dropped}" in capsys.readouterr().err
    assert all(example.draw % 2 == 0 for example in read_examples(examples_of(store)))
    chosen.pop("filter.strategy")
    assert ExitCode.DONE == command("train", store, MODEL | TRAIN | chosen)


def test_objectives_make_other_artifacts(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Once made for one objective, examples are not overwritten, and train refuses them."""
    assert ExitCode.DONE == command("filter", store, {})
    assert "objective" not in examples_of(store).manifest.recipe
    assert ExitCode.SETTINGS == command("filter", store, {"objective": "grpo"})
    assert "objective: nothing -> 'grpo'" in capsys.readouterr().err
    assert ExitCode.SETTINGS == command("train", store, MODEL | TRAIN | {"objective": "grpo"})
    said = capsys.readouterr().err
    assert "was made for objective rest, --objective is grpo" in said


def test_plain_fine_tuning_records_no_tokens(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same texts without log-probabilities, from which no policy gradient can learn: one line.

    And nobody overwrites them.
    """
    drawn = list(artifact(store, candidates_key(RUN_ID, 1), "generate").records(Candidate))
    shutil.rmtree(store / candidates_key(RUN_ID, 1))
    assert ExitCode.DONE == command("generate", store, MODEL | DRAWN)
    plain = artifact(store, candidates_key(RUN_ID, 1), "generate")
    assert "mean_token_logprob" not in plain.manifest.metrics
    bare = {"logprob_sum": None, "drawn_tokens": ""}
    assert [one.model_copy(update=bare) for one in drawn] == list(plain.records(Candidate))
    assert all(one.drawn_tokens and one.logprob_sum for one in drawn)
    assert ExitCode.SETTINGS == command("generate", store, MODEL | DRAWN | HEARING)
    assert "objective: nothing -> 'grpo'" in capsys.readouterr().err
    assert ExitCode.DATA == command("filter", store, {"objective": "grpo"})
    [line] = [line for line in capsys.readouterr().err.splitlines() if "recorded" in line]
    assert "its tokens were not recorded, so only --objective rest can learn" in line
    assert ExitCode.DONE == command("filter", store, {})


def rewrite(store: Path, old: Artifact, candidates: list[Candidate]) -> None:
    """Replace an artifact's only shard, and its digest in the manifest."""
    from mmar_jobs.artifact import pack_records
    from mmar_jobs.manifest import sha256

    [shard] = old.manifest.shards
    data, num_records = pack_records(candidates)
    changed = shard.model_copy(
        update={"sha256": sha256(data), "size_bytes": len(data), "num_records": num_records}
    )
    manifest = old.manifest.model_copy(update={"shards": (changed,)})
    (store / old.key / shard.name).write_bytes(data)
    (store / old.key / "manifest.json").write_bytes(
        canonical_json(manifest.model_dump(mode="json"))
    )


def test_hearing_is_rewarded_from_muted_answers(store: Path) -> None:
    """Generate asked with muted sound for the reward's sake, and filter reads what was said."""
    assert artifact(store, muted_key(RUN_ID, 1), "generate").manifest.counts["num_candidates"] == 12
    hearing = {
        "objective": "grpo",
        "reward.audio-dependence": 0.5,
        "reward.correct": 0,
        "reward.format": 0,
    }
    assert ExitCode.DONE == command("filter", store, hearing)
    examples = examples_of(store)
    assert "muted" in examples.manifest.inputs
    rewards = {e.reward for e in read_examples(examples) if isinstance(e, PolicyExample)}
    assert {0.0, 0.5} == rewards


def test_scalars_are_written_for_tensorboard(store: Path, tmp_path: Path) -> None:
    """Every step's numbers, for plain fine-tuning too."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "events"
    assert ExitCode.DONE == command("filter", store, {"objective": "grpo"})
    chosen = MODEL | TRAIN | {"objective": "grpo", "tensorboard": folder}
    assert ExitCode.DONE == command("train", store, chosen)
    events = EventAccumulator(str(folder / RUN_ID / "iter-1"))
    events.Reload()
    steps = json.loads((store / adapter_key(RUN_ID, 1) / STEPS).read_text())
    values = [event.value for event in events.Scalars("train/kl_old")]
    assert values == pytest.approx([step["kl_old"] for step in steps["metrics"]], abs=1e-6)
    assert len(steps["losses"]) == len(events.Scalars("train/loss"))
