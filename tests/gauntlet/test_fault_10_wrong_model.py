"""Fault 10: rounds 2 and 3 asked for a model that the server did not have, and the run exited 0."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from mmar_jobs.engine.local import LocalEngine, open_local_engine
from mmar_jobs.errors import ExitCode
from mmar_jobs.identity import Canary, ModelIdentity
from mmar_jobs.recipes import EngineSettings
from mmar_jobs.stages import OpenEngine
from mmar_jobs.weights import WEIGHTS_FILE
from tests.fakes import FakeEngine, FakeOpener
from tests.gauntlet.conftest import HealthyRun
from tests.gauntlet.planted import Row, Run

NEXT = ("--iteration", "2")


def forgets_adapter(run: Run) -> OpenEngine:
    """An engine that loads the base whatever it was asked for, and says so."""

    def open_engine(base: Path, adapter: Path | None, chosen: EngineSettings) -> FakeEngine:
        return run.opener()(base, None, chosen)

    return open_engine


class BaseUnderAnotherName(FakeOpener):
    """A server that lists the adapter's name and answers with the base."""

    def __call__(self, base: Path, adapter: Path | None, chosen: EngineSettings) -> FakeEngine:
        """Opens both, and shows the one behind the other's identity."""
        named = super().__call__(base, adapter, chosen)
        served = super().__call__(base, None, chosen)

        class Impostor(FakeEngine):
            def canary(self) -> Canary:
                """What the served model says."""
                return served.canary()

        return Impostor(named.identity, self.script)


@pytest.mark.parametrize(
    ("before", "stage", "flags"),
    [("evaluate", "generate", NEXT), ("train", "evaluate", ()), ("evaluate", "infer", ())],
)
def test_10_an_engine_that_serves_another_model_is_asked_nothing(
    run_after: HealthyRun, before: str, stage: str, flags: tuple[str, ...]
) -> None:
    """The earlier attempt generated its later rounds with whatever the server had, or nothing."""
    run = run_after(before)
    stop = run.stop(stage, *flags, opener=forgets_adapter(run))
    stop.says(ExitCode.DATA, "serves base", "with adapter none", "iteration 1", "nothing was asked")


def test_10_a_model_served_under_anothers_name_is_found_by_its_canary(
    run_after: HealthyRun,
) -> None:
    """A name proves nothing: to a fixed prompt a model must say what it said when trained."""
    run = run_after("evaluate")
    stop = run.stop("generate", *NEXT, opener=BaseUnderAnotherName(run.exam.healthy))
    stop.says(ExitCode.DATA, "does not serve model iteration 1", "canary", "manifest")


def test_10_training_does_not_vouch_for_an_engine_that_ignores_adapters(
    run_after: HealthyRun,
) -> None:
    """If the child answers its canary to the last digit like its parent, it was never applied."""
    run = run_after("filter")
    stop = run.stop("train", opener=BaseUnderAnotherName(run.exam.healthy))
    stop.says(ExitCode.DATA, "answers the canary exactly like its parent", "adapter")


def test_10_training_asks_which_model_is_served(run_after: HealthyRun) -> None:
    """The canary of a child is only taken from an engine that loaded this child."""
    run = run_after("filter")
    stop = run.stop("train", opener=forgets_adapter(run))
    stop.says(ExitCode.DATA, "serves base", "with adapter none", "iteration 1")


def test_10_a_server_without_the_model_is_an_error(run_after: HealthyRun) -> None:
    """404 on every request is no round without answers: the first shard already stops the run."""
    run = run_after("evaluate")
    every_id = frozenset(run.exam.rows)
    stop = run.stop("generate", *NEXT, opener=run.opener(broken=every_id))
    stop.says(ExitCode.DATA, "failed on 24 of 24 candidates", "503 from the server")


def test_10_a_missing_model_folder_is_an_error(run_after: HealthyRun, tmp_path: Path) -> None:
    """The folder that --model names is looked at before anything is asked."""
    run = run_after("ingest")
    run.model = tmp_path / "nowhere"
    run.cli("generate").says(ExitCode.DATA, "nowhere", "model folder")


def without_head(folder: Path) -> None:
    """Take the output layer out of the weights."""
    weights = load_file(folder / WEIGHTS_FILE)
    del weights["thinker.lm_head.weight"]
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def without_an_expert(folder: Path) -> None:
    """Take one of eight experts' gates out of the weights."""
    weights = load_file(folder / WEIGHTS_FILE)
    del weights["thinker.model.layers.0.mlp.experts.3.gate_proj.weight"]
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def narrower_head(folder: Path) -> None:
    """Cut one row off the output layer."""
    weights = load_file(folder / WEIGHTS_FILE)
    weights["thinker.lm_head.weight"] = weights["thinker.lm_head.weight"][:-1].contiguous()
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def another_layer(folder: Path) -> None:
    """Add a layer that config.json does not know."""
    weights = load_file(folder / WEIGHTS_FILE)
    norm = weights["thinker.model.layers.1.input_layernorm.weight"]
    weights["thinker.model.layers.2.input_layernorm.weight"] = norm.clone()
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def half_a_file(folder: Path) -> None:
    """A copy of the weights that broke off."""
    data = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(data[: len(data) // 2])


def empty_config(folder: Path) -> None:
    """A config.json that says nothing."""
    (folder / "config.json").write_text("{}")


def other_type(folder: Path) -> None:
    """The config.json of another family."""
    (folder / "config.json").write_text('{"model_type": "qwen2"}')


def config_without_sizes(folder: Path) -> None:
    """A config.json of the right type that leaves out the text part."""
    config = json.loads((folder / "config.json").read_text())
    del config["thinker_config"]["text_config"]
    (folder / "config.json").write_text(json.dumps(config))


def half_a_config(folder: Path) -> None:
    """A config.json that broke off."""
    (folder / "config.json").write_text('{"model_type": ')


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without_head, ("1 weights are missing", "lm_head.weight", "copy the model again")),
        (without_an_expert, ("weights are missing", ".mlp.experts.", "copy the model again")),
        (narrower_head, ("of another shape", "lm_head.weight", "copy the model again")),
        (another_layer, ("not part of the model", "layers.2.input_layernorm")),
        (half_a_file, ("no readable safetensors file", "copy it again")),
        (empty_config, ("config.json", "model type none", "qwen3_omni_moe")),
        (other_type, ("config.json", "model type qwen2", "qwen3_omni_moe")),
        (config_without_sizes, ("no thinker_config.text_config",)),
        (half_a_config, ("config.json", "not readable JSON")),
    ],
)
def test_10_a_spoilt_base_is_refused(
    run_after: HealthyRun,
    tmp_path: Path,
    spoil: Callable[[Path], None],
    words: tuple[str, ...],
) -> None:
    """Where weights lack, random ones would be taken, and the run would measure those."""
    run = run_after("ingest")
    run.model = shutil.copytree(run.model, tmp_path / "spoilt")
    spoil(run.model)
    run.cli("generate").says(ExitCode.DATA, "spoilt", *words)


def test_10_a_base_may_lack_eyes_and_have_a_voice(model_folder: Path, tmp_path: Path) -> None:
    """The vision tower is never fed; talker and code2wav are no part of the thinker."""
    folder = shutil.copytree(model_folder, tmp_path / "blind")
    weights = load_file(folder / WEIGHTS_FILE)
    kept = {name: weights[name] for name in weights if not name.startswith("thinker.visual.")}
    voice = kept["thinker.lm_head.weight"].clone()
    kept |= {"talker.model.norm.weight": voice, "code2wav.norm.weight": voice.clone()}
    save_file(kept, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    blind = open_local_engine(folder, None, EngineSettings(threads=1))
    whole = open_local_engine(model_folder, None, EngineSettings(threads=1))
    assert whole.canary() == blind.canary()


def test_10_an_iteration_without_a_parent_is_an_error(run_after: HealthyRun) -> None:
    """Iteration 2 follows the verdict on iteration 1, and there is none."""
    stop = run_after("train").cli("generate", *NEXT)
    stop.says(ExitCode.DATA, "no finished", "iter-1/verdict", "run the evaluate stage first")


def test_10_another_base_is_refused(run_after: HealthyRun, other_model_folder: Path) -> None:
    """Same file names, other weights: the base is known by its digest."""
    run = run_after("evaluate")
    run.model = other_model_folder
    for stage, flags in (("generate", NEXT), ("evaluate", ()), ("infer", ())):
        run.cli(stage, *flags).says(ExitCode.DATA, "was made with base model", "--model is")


def test_10_candidates_of_another_model_train_nobody(
    run_after: HealthyRun, other_model_folder: Path
) -> None:
    """A child learns from its own parent's answers only."""
    run = run_after("filter")
    run.model = other_model_folder
    run.cli("train").says(ExitCode.DATA, "was answered by model", "parent is", "another model")


def test_10_two_models_in_one_round_are_noticed(run_after: HealthyRun) -> None:
    """A server restarted with another model in mid-round leaves mixed candidates."""
    run = run_after("generate")

    def mix(rows: list[Row]) -> list[Row]:
        return [*rows[:-1], rows[-1] | {"model_hash": "0" * 64}]

    run.replant("iter-1/candidates", mix)
    run.cli("filter").says(ExitCode.DATA, "draw 5", "another model answered it")


def test_10_the_real_engine_names_what_it_loaded(run_after: HealthyRun) -> None:
    """Identity comes from the bytes that were loaded, not from a setting."""
    run = run_after("train")
    adapter = run.path("iter-1/adapter")
    chosen = EngineSettings(threads=1)
    base: LocalEngine = open_local_engine(run.model, None, chosen)
    child: LocalEngine = open_local_engine(run.model, adapter, chosen)
    digest = run.artifact("iter-1/adapter").manifest.shards[0].sha256
    expected = ModelIdentity(base_digest=base.identity.base_digest, adapter_digest=digest)
    assert expected == child.identity
    assert base.canary() != child.canary()
