"""Tests of settings: where a value comes from, and that every mistake is one clear line."""

import dataclasses
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from mmar_jobs import settings
from mmar_jobs.errors import SettingsError
from mmar_jobs.manifest import canonical_json
from mmar_jobs.planning.prices import read_prices
from mmar_jobs.prompt import SYSTEM_BY_VERSION
from mmar_jobs.qlora.recipes import LoraRecipe, TrainRecipe
from mmar_jobs.recipes import (
    EngineSettings,
    Group,
    LoraSettings,
    OptimSettings,
    PromptRecipe,
    RepetitionDetectionRecipe,
    SamplingRecipe,
    recipe,
)
from mmar_jobs.settings import (
    Command,
    FilterCommand,
    GenerateCommand,
    IngestCommand,
    RunCommand,
    TrainCommand,
    parse,
)

NEEDED = ["--store", "s", "--run-id", "r", "--model", "m"]
COMMANDS = [
    getattr(settings, f"{name}Command")
    for name in (
        *("Run", "Ingest", "Generate", "Filter", "Train", "Evaluate", "Infer", "Submit", "Report"),
    )
]


@pytest.fixture
def env() -> Iterator[pytest.MonkeyPatch]:
    """An environment to set variables of our own in."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def generate(*flags: str) -> GenerateCommand:
    """The settings of `generate` with the needed flags and these."""
    return parse(GenerateCommand, [*NEEDED, *flags], prog="mmar-jobs generate")


def refused(*flags: str) -> str:
    """The one line that refuses these flags of `generate`."""
    with pytest.raises(SettingsError) as caught:
        generate(*flags)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_flag_beats_variable_beats_file_beats_default(
    env: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each source wins over the ones behind it, setting by setting within one group."""
    file = tmp_path / "run.toml"
    file.write_text("[sampling]\ntemperature = 0.1\ntop_p = 0.1\nseed = 1\n")
    env.setenv("MMAR_SAMPLING__TEMPERATURE", "0.2")
    env.setenv("MMAR_SAMPLING__TOP_P", "0.2")
    chosen = generate("--config", str(file), "--sampling.temperature", "0.3").sampling
    assert (0.3, 0.2, 1, 16) == (
        chosen.temperature,
        chosen.top_p,
        chosen.seed,
        chosen.num_candidates,
    )


def test_file_may_be_named_by_a_variable(env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """MMAR_CONFIG is as good as --config."""
    file = tmp_path / "run.toml"
    file.write_text('store = "from-file"\n[filter.weights]\nhard = 2.5\n')
    env.setenv("MMAR_CONFIG", str(file))
    command = parse(FilterCommand, ["--run-id", "r"], prog="p")
    assert ("from-file", 2.5, 1.0) == (
        command.store,
        command.filter.weights.hard,
        command.filter.weights.medium,
    )


def test_needed_settings_may_come_from_variables(env: pytest.MonkeyPatch) -> None:
    """A Kubernetes Job sets variables and no flags."""
    for name, value in (("STORE", "s"), ("RUN_ID", "r"), ("MODEL", "m"), ("ITERATION", "2")):
        env.setenv(f"MMAR_{name}", value)
    command = parse(TrainCommand, [], prog="p")
    assert ("s", "r", "m", 2) == (command.store, command.run_id, command.model, command.iteration)


def test_one_file_serves_all_commands(tmp_path: Path) -> None:
    """Groups of other commands are left out, not refused."""
    file = tmp_path / "run.toml"
    file.write_text('model = "m"\n[lora]\nrank = 2\n[data]\nseed = 3\n[filter]\ntop_k = 1\n')
    flags = ["--store", "s", "--run-id", "r", "--config", str(file)]
    assert 1 == parse(FilterCommand, flags, prog="p").filter.top_k
    assert 2 == parse(TrainCommand, flags, prog="p").lora.rank
    assert 3 == parse(IngestCommand, flags, prog="p").data.seed
    assert 2 == parse(RunCommand, flags, prog="p").lora.rank


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--sampling.top-p", "1.5"], "--sampling.top-p '1.5': Input should be less than or equal"),
        (["--sampling.temperature", "0"], "--sampling.temperature '0'"),
        (["--sampling.temperature", "inf"], "--sampling.temperature 'inf'"),
        (["--sampling.temperature", "nan"], "--sampling.temperature 'nan'"),
        (["--sampling.num-candidates", "0"], "--sampling.num-candidates '0'"),
        (["--sampling.num-candidates", "many"], "--sampling.num-candidates 'many'"),
        (["--engine.dtype", "int4"], "int4"),
        (["--filter.strategy", "shortest"], "shortest"),
        (["--iteration", "0"], "--iteration '0'"),
        (["--run-id", "Upper"], "--run-id 'Upper'"),
        (["--run-id", "a" * 41], "--run-id"),
        (["--sampling.temprature", "1"], "--sampling.temprature"),
        (["--bogus"], "--bogus"),
        (["stray"], "stray"),
    ],
)
def test_wrong_flag_is_named(flags: list[str], named: str) -> None:
    """The line names the flag and its value, and says where help is."""
    line = refused(*flags)
    assert named in line
    assert line.endswith("see mmar-jobs generate --help")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--optim.betas", "1.0,0.98"], "--optim.betas.0 1.0: Input should be less than 1"),
        (["--optim.betas", "0.9,-0.1"], "--optim.betas.1 -0.1"),
        (["--lora.dropout", "1"], "--lora.dropout '1': Input should be less than 1"),
        (["--optim.decay", "linear"], "linear"),
        (["--prompt.version", "v10"], "v10"),
    ],
)
@pytest.mark.parametrize("kind", [TrainCommand, RunCommand])
def test_what_training_cannot_use_is_refused_first(
    kind: type[Command], flags: list[str], named: str
) -> None:
    """These would end a run in training, after the hours of its first generation."""
    with pytest.raises(SettingsError) as caught:
        parse(kind, [*NEEDED, *flags], prog="p")
    assert named in str(caught.value)


@pytest.mark.parametrize("kind", [TrainCommand, RunCommand])
def test_optimizer_that_is_not_installed_is_refused_first(
    kind: type[Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked before anything is generated."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # what Python calls not importable
    with pytest.raises(SettingsError, match="needs bitsandbytes, which is not installed"):
        parse(kind, [*NEEDED, "--optim.optimizer", "adamw8bit"], prog="p")


def test_prompt_versions_are_those_that_exist() -> None:
    """An unknown one is refused with the list of choices, and none is left out of it."""
    line = refused("--prompt.version", "v10")
    assert ", ".join(SYSTEM_BY_VERSION) in line
    assert ", ".join(SYSTEM_BY_VERSION) in str(PromptRecipe.model_fields["version"].description)


def test_training_recipes_have_the_defaults_of_settings() -> None:
    """A default that stands twice says the same in both places."""
    lora, optim = LoraSettings(), OptimSettings()
    values = optim.model_dump(exclude={"learning_rates"})
    every = TrainCommand.model_fields["checkpoint_every_steps"].default
    given = TrainRecipe(learning_rate=1e-5, checkpoint_every_steps=every, **values)
    assert given == TrainRecipe(learning_rate=1e-5)
    assert LoraRecipe(**lora.model_dump(exclude={"quantization"})) == LoraRecipe()
    left = {field.name for field in dataclasses.fields(TrainRecipe)} - values.keys()
    assert {"learning_rate", "checkpoint_every_steps"} == left


def test_missing_settings_are_all_named() -> None:
    """Every missing one with its flag and its variable."""
    with pytest.raises(SettingsError) as caught:
        parse(GenerateCommand, [], prog="p")
    for flag, variable in (("--store", "MMAR_STORE"), ("--run-id", "MMAR_RUN_ID")):
        assert f"{flag} is needed (or {variable})" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("MMAR_SAMPLING__TEMPRATURE", "did you mean sampling.temperature?"),
        ("MMAR_STOER", "did you mean store?"),
        ("MMAR_XYZZY", "there is no setting xyzzy"),
        ("MMAR_SAMPLING", "there is no setting sampling"),
    ],
)
def test_unknown_variable_is_named(env: pytest.MonkeyPatch, name: str, hint: str) -> None:
    """A misspelt variable would otherwise be ignored without a word."""
    env.setenv(name, "1")
    line = refused()
    assert f"variable {name}" in line
    assert hint in line


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[sampling]\ntemprature = 1\n", "there is no setting sampling.temprature; did you mean"),
        ("store = \n", "is not TOML"),
        ("[sampling]\ntemperature = -1\n", "--sampling.temperature -1"),
        ("sampling = 3\n", "sampling"),
        ("[store]\nname = 's'\n", "store.name"),
    ],
)
def test_wrong_file_is_named(tmp_path: Path, text: str, named: str) -> None:
    """What is wrong in a file is said like what is wrong on the command line."""
    file = tmp_path / "run.toml"
    file.write_text(text)
    assert named in refused("--config", str(file))


@pytest.mark.parametrize("data", [None, b"\xff\xfe\x00"])
def test_unreadable_file_is_named(tmp_path: Path, data: bytes | None) -> None:
    """A missing file, and one that is no text."""
    file = tmp_path / "missing.toml"
    if data is not None:
        file.write_bytes(data)
    assert f"--config {file}" in refused("--config", str(file))


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of a command with its field."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_says_what_it_is(command: type[BaseModel]) -> None:
    """No setting without a description."""
    assert not [name for name, field in leaves(command) if not field.description]


@pytest.mark.parametrize("command", COMMANDS)
def test_shared_settings_are_the_same_everywhere(command: type[BaseModel]) -> None:
    """What run hands to a stage is what the stage alone would take: same type, same default."""
    run = dict(leaves(RunCommand))
    for name, field in leaves(command):
        if name in run and name not in ("output", "fail_on_refusal"):
            assert run[name].annotation == field.annotation, name
            assert run[name].default == field.default, name


def groups(model: type[BaseModel]) -> Iterator[type[Group]]:
    """All groups of a command."""
    for field in model.model_fields.values():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Group):
            yield kind


def test_placement_names_fields() -> None:
    """A group's placement names fields that it has."""
    for group in groups(RunCommand):
        assert group.placement <= group.model_fields.keys()


def test_threads_do_not_change_a_recipe() -> None:
    """Where a stage runs is not part of what it makes; precision is."""
    plain = recipe(("engine", EngineSettings()))
    assert plain == recipe(("engine", EngineSettings(threads=3)))
    assert plain != recipe(("engine", EngineSettings(dtype="bfloat16")))


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_accepted_numbers_have_a_fingerprint(value: float) -> None:
    """Every temperature that is accepted can be hashed: NaN and infinity are not."""
    try:
        chosen = generate(f"--sampling.temperature={value!r}")
    except SettingsError:
        return
    canonical_json(recipe(("sampling", chosen.sampling)))


def test_shipped_files_parse() -> None:
    """Every TOML file that the package ships is accepted by the command that it is for."""
    files = {path.name: path for path in Path(settings.__file__).parent.rglob("*.toml")}
    assert read_prices(files.pop("prices.toml"))
    for file in files.values():
        assert tomllib.loads(file.read_text())
        flags = ["--store", "s", "--run-id", "r", "--model", "m", "--config", str(file)]
        parse(RunCommand, flags, prog="p")


def test_a_pattern_between_sizes_that_exclude_each_other_is_refused() -> None:
    """It would never be found; off is off whatever the other sizes are."""
    with pytest.raises(ValueError, match="no pattern is between"):
        RepetitionDetectionRecipe(max_pattern_size=3, min_pattern_size=4)
    assert 0 == RepetitionDetectionRecipe(min_pattern_size=4).max_pattern_size


def test_what_stops_loops_is_hashed() -> None:
    """Candidates drawn with a budget or a detection are others."""
    plain = SamplingRecipe().recipe()
    assert plain != SamplingRecipe(thinking_token_budget=9).recipe()
    detection = RepetitionDetectionRecipe(max_pattern_size=9)
    assert plain != SamplingRecipe(repetition_detection=detection).recipe()
