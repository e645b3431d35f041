"""Every knob of every stage; the only reader of the environment.

A value comes from the flag, else from the variable `MMAR_<GROUP>__<NAME>`, else from the file given
by `--config` (TOML), else from the default here. Groups are *recipe* (they change results and are
hashed into fingerprints) or *placement* (they do not). No group holds a secret: S3 credentials are
read by boto3 itself, the key of vLLM's servers by `server_key`. Not here: what the values do.
"""

import argparse
import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings.exceptions import SettingsError as PydanticSettingsError

from mmar_jobs.errors import SettingsError
from mmar_jobs.recipes import (
    OBJECTIVE_TEXT,
    Count,
    DataRecipe,
    EngineSettings,
    FilterRecipe,
    GateRecipe,
    GrpoRecipe,
    HardwareSettings,
    InferRecipe,
    LoraSettings,
    Objective,
    OptimSettings,
    PromptRecipe,
    RewardRecipe,
    SamplingRecipe,
    knob,
    tensorboard_installed,
)

ENV_PREFIX = "MMAR_"

RunId = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$")]


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Wide enough that a setting, its meaning and its default fit one line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=44, width=110)


class Command(BaseSettings):
    """What every command knows: where the store is and which run it works on."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        nested_model_default_partial_update=True,
    )
    config: Annotated[Path | None, knob("TOML file with settings; flags and variables win")] = None
    store: Annotated[str, knob("folder, file:// or s3://bucket/prefix that holds all artifacts")]
    run_id: Annotated[RunId, knob("name of the run, a DNS label of at most 40 characters")]
    endpoint_url: Annotated[str | None, knob("S3 endpoint, for servers other than AWS")] = None
    log_format: Annotated[Literal["auto", "json", "console"], knob("auto: console on a TTY")] = (
        "auto"
    )
    outcome_file: Annotated[
        Path | None, knob("file for what the stage decided and counted, JSON")
    ] = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags come in through CliApp, before all of these."""
        del dotenv_settings, file_secret_settings
        return (init_settings, env_settings, _FileSource(settings_cls))


class _FileSource(PydanticBaseSettingsSource):
    """The TOML file of `--config` or MMAR_CONFIG, less the groups of other commands."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        """Required by the base class; values are given all at once by __call__."""
        raise NotImplementedError

    def __call__(self) -> dict[str, Any]:
        """The file's values, unknown names refused."""
        path = self.current_state.get("config") or os.environ.get(f"{ENV_PREFIX}CONFIG")
        if not path:
            return {}
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingsError(f"--config {path} cannot be read: {error.strerror}") from None
        except ValueError as error:  # TOML's own, or bytes that are not UTF-8
            raise SettingsError(f"--config {path} is not TOML: {error}") from None
        for name in flatten(values):
            check_name(name, f"--config {path}")
        return {
            key: value for key, value in values.items() if key in self.settings_cls.model_fields
        }


C = TypeVar("C", bound=Command)


_STRICT = "a bad training or held-out row is an error, not a count; a bad benchmark row always is"
_AUDIO_ROOT = "folder or URI where all clips lie, if not beside their question files"


class Sources(BaseModel):
    """What ingest reads."""

    questions: Annotated[str, knob("training questions, JSONL, path or URI")] = ""
    benchmark: Annotated[str, knob("benchmark questions (MMAR-meta.jsonl), path or URI")] = ""
    heldout: Annotated[str, knob("held-out questions, path or URI; empty: split --questions")] = ""


class IngestCommand(Command, Sources):
    """Read and check questions and clips, split them by audio, guard the benchmark."""

    strict: Annotated[bool, knob(_STRICT)] = False
    audio_root: Annotated[str, knob(_AUDIO_ROOT)] = ""
    data: DataRecipe = DataRecipe()


class _Iteration(BaseModel):
    iteration: Annotated[Count, knob("turn of the loop, from 1")] = 1


class _WithObjective(BaseModel):
    objective: Annotated[Objective, knob(OBJECTIVE_TEXT)] = "rest"


class _Rewarded(_WithObjective):
    reward: RewardRecipe = RewardRecipe()

    @property
    def rewards_hearing(self) -> bool:
        """Whether a reward needs answers to muted clips."""
        return self.objective != "rest" and self.reward.audio_dependence > 0


class GenerateCommand(Command, _Iteration, _Rewarded):
    """Answer each training question K times with the current model."""

    model: Annotated[str, knob("folder of the base model")]
    audio_root: Annotated[str, knob("where clips lie, if not where ingest saw them")] = ""
    prompt: PromptRecipe = PromptRecipe()
    sampling: SamplingRecipe = SamplingRecipe()
    filter: FilterRecipe = FilterRecipe()
    engine: EngineSettings = EngineSettings()


class FilterCommand(Command, _Iteration, _Rewarded):
    """Keep the candidates that are provably right as training examples."""

    prompt: PromptRecipe = PromptRecipe()
    filter: FilterRecipe = FilterRecipe()
    rubric_scores: Annotated[
        str, knob("what score --rubrics --json printed of the candidates, path or URI")
    ] = ""


class _Trained(BaseModel):
    grpo: GrpoRecipe = GrpoRecipe()
    checkpoint_every_steps: Annotated[Count, knob("optimiser steps between checkpoints")] = 20
    tensorboard: Annotated[
        Path | None,
        AfterValidator(tensorboard_installed),
        knob("folder for TensorBoard's event files, a folder in it for each iteration"),
    ] = None


class TrainCommand(Command, _Iteration, _WithObjective, _Trained):
    """Train a QLoRA adapter on the examples."""

    model: Annotated[str, knob("folder of the base model")]
    audio_root: Annotated[str, knob("where clips lie, if not where ingest saw them")] = ""
    prompt: PromptRecipe = PromptRecipe()
    lora: LoraSettings = LoraSettings()
    optim: OptimSettings = OptimSettings()
    engine: EngineSettings = EngineSettings()
    hardware: HardwareSettings = HardwareSettings()


class EvaluateCommand(Command, _Iteration):
    """Compare parent and child on the held-out questions and record the verdict."""

    model: Annotated[str, knob("folder of the base model")]
    audio_root: Annotated[str, knob("where clips lie, if not where ingest saw them")] = ""
    prompt: PromptRecipe = PromptRecipe()
    sampling: SamplingRecipe = SamplingRecipe()
    gate: GateRecipe = GateRecipe()
    engine: EngineSettings = EngineSettings()
    fail_on_refusal: Annotated[bool, knob("exit 4 when the child is not promoted")] = False


class InferCommand(Command):
    """Answer the benchmark with the best model."""

    model: Annotated[str, knob("folder of the base model")]
    audio_root: Annotated[str, knob("where clips lie, if not where ingest saw them")] = ""
    prompt: PromptRecipe = PromptRecipe()
    sampling: SamplingRecipe = SamplingRecipe()
    infer: InferRecipe = InferRecipe()
    engine: EngineSettings = EngineSettings()


class SubmitCommand(Command):
    """Pack the predictions into submission.zip and validate it."""

    output: Annotated[Path | None, knob("also write submission.zip to this path")] = None


class ReportCommand(Command):
    """Write report.html from what the run recorded."""

    output: Annotated[Path | None, knob("also write report.html to this path")] = None


class RunCommand(Command, Sources, _Rewarded, _Trained):
    """Run it all: ingest; per iteration generate, filter, train, evaluate; infer, submit."""

    model: Annotated[str, knob("folder of the base model")]
    strict: Annotated[bool, knob(_STRICT)] = False
    iterations: Annotated[Count, knob("turns of the loop at most")] = 3
    audio_root: Annotated[str, knob(_AUDIO_ROOT)] = ""
    data: DataRecipe = DataRecipe()
    prompt: PromptRecipe = PromptRecipe()
    sampling: SamplingRecipe = SamplingRecipe()
    filter: FilterRecipe = FilterRecipe()
    lora: LoraSettings = LoraSettings()
    optim: OptimSettings = OptimSettings()
    gate: GateRecipe = GateRecipe()
    infer: InferRecipe = InferRecipe()
    engine: EngineSettings = EngineSettings()
    hardware: HardwareSettings = HardwareSettings()
    fail_on_refusal: Annotated[bool, knob("exit 4 when no iteration was promoted")] = False
    output: Annotated[Path | None, knob("folder for copies of submission.zip, report.html")] = None


class ServeConfigCommand(Command, _Iteration):
    """Merge what a node's vLLM servers are to load, and write a config file for each."""

    store: Annotated[str, knob("the run's store; needed with --run-id")] = ""
    run_id: Annotated[str, knob("the run whose models are served; empty: the base")] = ""
    model: Annotated[str, knob("folder of the base model")]
    models: Annotated[
        str,
        Field(
            pattern=r"^(base|parent|child|best)(,(base|parent|child|best))*$",
            description="what each server loads, the last word for all that follow: base, parent, "
            "child (both of --iteration), best",
        ),
    ] = "parent"
    num_servers: Annotated[Count, knob("servers of the node")] = 1
    cache: Annotated[Path, knob("folder that keeps merged models")]
    prune: Annotated[bool, knob("delete merged models in --cache that no server loads")] = False
    output: Annotated[Path, knob("folder for server-0.yaml and so on")]


@dataclass(frozen=True, slots=True)
class Process:
    """Which of the processes that a launcher started for one command this is, from 0."""

    rank: int = 0
    num: int = 1
    local_rank: int = 0


def launched() -> Process:
    """This process by what torchrun, or our own launcher, says; alone when neither does."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    found = [os.environ.get(name) for name in names]
    if None in found:
        return Process()
    try:
        return Process(*(int(str(value)) for value in found))
    except ValueError:
        raise SettingsError(
            f"the variables {', '.join(names)} are not numbers: start with torchrun, or unset them"
        ) from None


def argo_progress_file() -> Path | None:
    """Where Argo's executor reads how far a pod is, if it is Argo that started this."""
    name = os.environ.get("ARGO_PROGRESS_FILE")
    return Path(name) if name else None


def store_address() -> tuple[str | None, str | None]:
    """Store and S3 endpoint of the stages, for commands that only share these with them."""
    names = ("STORE", "ENDPOINT_URL")
    store, endpoint_url = (os.environ.get(f"{ENV_PREFIX}{name}") or None for name in names)
    return store, endpoint_url


def environment_without_settings() -> dict[str, str]:
    """The environment for a process that is to know only the settings in its flags."""
    return {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}


def server_key() -> str | None:
    """The key of vLLM's servers, which vLLM itself reads from the same variable."""
    return os.environ.get("VLLM_API_KEY") or None


def parse(command: type[C], argv: Sequence[str], *, prog: str) -> C:
    """Read one command's settings from flags, environment and file.

    Raises SettingsError in one line for everything that is unknown, missing or out of range.
    """
    for name in os.environ:
        if name.startswith(ENV_PREFIX) and name != f"{ENV_PREFIX}CONFIG":
            check_name(name.removeprefix(ENV_PREFIX).lower().replace("__", "."), f"variable {name}")
    cli = CliSettingsSource[Any](
        command, cli_prog_name=prog, cli_exit_on_error=False, formatter_class=_HelpFormatter
    )
    try:
        return CliApp.run(command, cli_args=list(argv), cli_settings_source=cli)
    except ValidationError as error:
        raise SettingsError(_explain(error, prog)) from None
    except PydanticSettingsError as error:
        raise SettingsError(f"{str(error).strip().splitlines()[0]}; see {prog} --help") from None


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of all leaves of a nested mapping."""
    names: list[str] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        names += flatten(value, f"{name}.") if isinstance(value, Mapping) else [name]
    return names


def check_name(name: str, where: str) -> None:
    """Raise SettingsError unless some command has a setting called `name` (dotted)."""
    known = _known_names()
    if name in known:
        return
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise SettingsError(f"{where}: there is no setting {name}{hint}")


@cache
def _known_names() -> frozenset[str]:
    commands = (
        *(IngestCommand, GenerateCommand, FilterCommand, SubmitCommand, ReportCommand),
        *(RunCommand, ServeConfigCommand),
    )
    return frozenset(name for command in commands for name in _leaves(command))


def _leaves(model: type[BaseModel], prefix: str = "") -> list[str]:
    names: list[str] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += _leaves(kind, f"{prefix}{name}.")
        else:
            names.append(f"{prefix}{name}")
    return names


def _explain(error: ValidationError, prog: str) -> str:
    parts = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"])
        flag = f"--{name.replace('_', '-')}"
        if item["type"] == "missing":
            parts.append(f"{flag} is needed (or {ENV_PREFIX}{name.upper().replace('.', '__')})")
        elif item["type"] == "extra_forbidden":
            parts.append(f"there is no setting {name}")
        else:
            parts.append(f"{flag} {item['input']!r}: {item['msg']}")
    return f"{'; '.join(parts)}; see {prog} --help"
