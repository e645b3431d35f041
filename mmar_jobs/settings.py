"""Every knob of every stage; the only reader of the environment.

A value comes from the flag, else from the variable `MMAR_<GROUP>__<NAME>`, else from the file given
by `--config` (TOML), else from the default here. Groups are *recipe* (they change results and are
hashed into fingerprints) or *placement* (they do not). No group holds a secret: S3 credentials are
read by boto3 itself. Not here: what the values do.
"""

import argparse
import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings.exceptions import SettingsError as PydanticSettingsError

from mmar_jobs.errors import SettingsError

ENV_PREFIX = "MMAR_"

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
RunId = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$")]


def _help(text: str) -> Any:
    return Field(description=text)


def _installed(optimizer: str) -> str:
    """Refuse an optimiser whose package lacks, before hours of generation are spent."""
    if optimizer == "adamw8bit" and find_spec("bitsandbytes") is None:
        raise ValueError("needs bitsandbytes, which is not installed: choose adamw")
    return optimizer


class Group(BaseModel):
    """A frozen, closed group of settings; docstrings of subclasses head their section of --help."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    # Names of fields that change where or how fast a stage runs, but not its result.
    placement: ClassVar[frozenset[str]] = frozenset()


class PromptRecipe(Group):
    """The prompt (recipe)."""

    version: Annotated[Literal["v7", "v8", "v9", "v12"], _help("prompt text")] = "v9"


class DataRecipe(Group):
    """Ingest: which questions are used and how they are split (recipe)."""

    heldout_fraction: Annotated[
        Fraction, _help("share of clips held out for the gate when --heldout is not given")
    ] = 0.1
    max_clip_s: Annotated[
        float,
        Field(
            gt=0,
            description="longest clip, seconds; longer ones are bad rows, but for 0.5 s of padding",
        ),
    ] = 30.0
    contamination: Annotated[
        Literal["refuse", "drop"],
        _help(
            "a question that shares audio, id or source with benchmark or --heldout: refuse, drop"
        ),
    ] = "refuse"
    seed: Annotated[int, _help("seed of the split by audio")] = 0


class SamplingRecipe(Group):
    """Generate: how candidates are drawn (recipe)."""

    num_candidates: Annotated[Count, _help("candidates per question, K")] = 16
    adaptive: Annotated[
        bool, _help("draw K in blocks (K/4, K/4, K/2), stop once a question is settled")
    ] = False
    temperature: Annotated[float, Field(gt=0, description="softmax temperature")] = 0.9
    top_p: Annotated[Fraction, _help("nucleus: smallest set of tokens with this probability")] = (
        0.95
    )
    top_k: Annotated[CountOrZero, _help("keep the k likeliest tokens; 0 keeps all")] = 0
    repetition_penalty: Annotated[
        float, Field(gt=0, description="penalty on tokens seen before; 1 is none")
    ] = 1.0
    max_tokens: Annotated[Count, _help("longest completion, tokens")] = 6000
    questions_per_iteration: Annotated[
        CountOrZero,
        _help(
            "fresh questions each iteration takes from the training split; 0 takes all each time"
        ),
    ] = 0
    questions_per_shard: Annotated[Count, _help("questions per durable shard")] = 32
    seed: Annotated[int, _help("seed of every draw")] = 0


class ZoneWeights(Group):
    """Weight of a training example by its question's learning zone; 0 leaves the zone out."""

    hard: Annotated[float, Field(ge=0, description="weight where 0 < rate <= 1/3")] = 1.0
    medium: Annotated[float, Field(ge=0, description="weight where 1/3 < rate < 2/3")] = 1.0
    easy: Annotated[float, Field(ge=0, description="weight where 2/3 <= rate < 1")] = 1.0
    mastered: Annotated[
        float, Field(ge=0, description="weight where every valid attempt is right")
    ] = 0.0


class FilterRecipe(Group):
    """Filter: which candidates become examples (recipe)."""

    strategy: Annotated[Literal["top_k", "all"], _help("correct candidates kept per question")] = (
        "top_k"
    )
    top_k: Annotated[Count, _help("candidates kept per question by top_k")] = 3
    min_valid: Annotated[Count, _help("valid attempts below which a question is undecided")] = 4
    weights: ZoneWeights = ZoneWeights()
    audio_dependence: Annotated[
        bool, _help("drop questions that the model also answers right with muted audio")
    ] = False
    seed: Annotated[int, _help("seed of ties")] = 0


class LoraSettings(Group):
    """Train: the adapter (recipe)."""

    rank: Annotated[Count, _help("LoRA rank r")] = 64
    alpha: Annotated[float, Field(gt=0, description="LoRA alpha; the scale is alpha / r")] = 128.0
    dropout: Annotated[BelowOne, _help("dropout on the LoRA input")] = 0.05


class OptimSettings(Group):
    """Train: the optimiser (recipe)."""

    learning_rates: Annotated[
        tuple[Annotated[float, Field(gt=0)], ...],
        Field(min_length=1, description="peak learning rate per iteration; the last one repeats"),
    ] = (2e-5, 1e-5, 5e-6)
    num_epochs: Annotated[Count, _help("passes over the examples")] = 1
    examples_per_step: Annotated[Count, _help("examples per optimiser step")] = 8
    token_budget: Annotated[Count, _help("tokens per packed row; longer examples are dropped")] = (
        8192
    )
    weighting: Annotated[
        Literal["example", "token"], _help("mean over examples, or over all their tokens")
    ] = "example"
    optimizer: Annotated[
        Literal["adamw", "adamw8bit"],
        AfterValidator(_installed),
        _help("adamw8bit needs bitsandbytes"),
    ] = "adamw"
    betas: Annotated[tuple[BelowOne, BelowOne], _help("AdamW betas")] = (0.9, 0.98)
    weight_decay: Annotated[float, Field(ge=0, description="AdamW weight decay")] = 0.0
    warmup_fraction: Annotated[Fraction, _help("share of the steps with rising learning rate")] = (
        0.05
    )
    decay: Annotated[
        Literal["cosine", "constant"], _help("learning rate after the warm-up: down to 0, or flat")
    ] = "cosine"
    max_grad_norm: Annotated[float, Field(gt=0, description="gradient norm is clipped to this")] = (
        1.0
    )
    seed: Annotated[int, _help("seed of LoRA's first weights, dropout and order")] = 0


class GateRecipe(Group):
    """Evaluate: when a child is promoted (recipe)."""

    alpha: Annotated[Fraction, _help("the paired p-value (exact McNemar) must be below this")] = (
        0.05
    )
    min_gain: Annotated[Fraction, _help("gain in accuracy that a child must exceed, 0 to 1")] = 0.0
    regression_alpha: Annotated[
        Fraction,
        _help("a category worse with a Holm-adjusted p-value below this refuses the child"),
    ] = 0.05
    patience: Annotated[Count, _help("refusals in a row after which the loop stops")] = 2
    muted_control: Annotated[
        bool, _help("also ask the child with muted audio; deaf is refused")
    ] = True


class InferRecipe(Group):
    """Infer: how the benchmark is answered (recipe)."""

    votes: Annotated[Count, _help("1 answers greedily; n > 1 takes the majority of n answers")] = 1
    seed: Annotated[int, _help("seed of the votes")] = 0


class EngineSettings(Group):
    """The engine that answers prompts (recipe, but for threads)."""

    placement: ClassVar[frozenset[str]] = frozenset({"threads"})

    dtype: Annotated[
        Literal["float32", "bfloat16"], _help("precision of the weights in process (recipe)")
    ] = "float32"
    rows_per_batch: Annotated[
        Count, _help("sequences decoded together; part of the recipe, rounding depends on it")
    ] = 512
    threads: Annotated[CountOrZero, _help("CPU threads; 0 takes all cores")] = 0


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
    summary: ClassVar[str] = ""

    config: Annotated[Path | None, _help("TOML file with settings; flags and variables win")] = None
    store: Annotated[str, _help("folder, file:// or s3://bucket/prefix that holds all artifacts")]
    run_id: Annotated[RunId, _help("name of the run, a DNS label of at most 40 characters")]
    endpoint_url: Annotated[str | None, _help("S3 endpoint, for servers other than AWS")] = None
    log_format: Annotated[Literal["auto", "json", "console"], _help("auto: console on a TTY")] = (
        "auto"
    )

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

    questions: Annotated[str, _help("training questions, JSONL, path or URI")] = ""
    benchmark: Annotated[str, _help("benchmark questions (MMAR-meta.jsonl), path or URI")] = ""
    heldout: Annotated[str, _help("held-out questions, path or URI; empty: split --questions")] = ""


class IngestCommand(Command, Sources):
    """Read and check questions and clips, split them by audio, guard the benchmark."""

    strict: Annotated[bool, _help(_STRICT)] = False
    audio_root: Annotated[str, _help(_AUDIO_ROOT)] = ""
    data: DataRecipe = DataRecipe()


class _Iteration(BaseModel):
    iteration: Annotated[Count, _help("turn of the loop, from 1")] = 1


class GenerateCommand(Command, _Iteration):
    """Answer each training question K times with the current model."""

    model: Annotated[str, _help("folder of the base model")]
    audio_root: Annotated[str, _help("where clips lie, if not where ingest saw them")] = ""
    prompt: PromptRecipe = PromptRecipe()
    sampling: SamplingRecipe = SamplingRecipe()
    filter: FilterRecipe = FilterRecipe()
    engine: EngineSettings = EngineSettings()


class FilterCommand(Command, _Iteration):
    """Keep the candidates that are provably right as training examples."""

    prompt: PromptRecipe = PromptRecipe()
    filter: FilterRecipe = FilterRecipe()


class TrainCommand(Command, _Iteration):
    """Train a QLoRA adapter on the examples."""

    model: Annotated[str, _help("folder of the base model")]
    audio_root: Annotated[str, _help("where clips lie, if not where ingest saw them")] = ""
    prompt: PromptRecipe = PromptRecipe()
    lora: LoraSettings = LoraSettings()
    optim: OptimSettings = OptimSettings()
    engine: EngineSettings = EngineSettings()
    checkpoint_every_steps: Annotated[Count, _help("optimiser steps between checkpoints")] = 20


class EvaluateCommand(Command, _Iteration):
    """Compare parent and child on the held-out questions and record the verdict."""

    model: Annotated[str, _help("folder of the base model")]
    audio_root: Annotated[str, _help("where clips lie, if not where ingest saw them")] = ""
    prompt: PromptRecipe = PromptRecipe()
    sampling: SamplingRecipe = SamplingRecipe()
    gate: GateRecipe = GateRecipe()
    engine: EngineSettings = EngineSettings()
    fail_on_refusal: Annotated[bool, _help("exit 4 when the child is not promoted")] = False


class InferCommand(Command):
    """Answer the benchmark with the best model."""

    model: Annotated[str, _help("folder of the base model")]
    audio_root: Annotated[str, _help("where clips lie, if not where ingest saw them")] = ""
    prompt: PromptRecipe = PromptRecipe()
    sampling: SamplingRecipe = SamplingRecipe()
    infer: InferRecipe = InferRecipe()
    engine: EngineSettings = EngineSettings()


class SubmitCommand(Command):
    """Pack the predictions into submission.zip and validate it."""

    output: Annotated[Path | None, _help("also write submission.zip to this path")] = None


class ReportCommand(Command):
    """Write report.html from what the run recorded."""

    output: Annotated[Path | None, _help("also write report.html to this path")] = None


class RunCommand(Command, Sources):
    """Run it all: ingest; per iteration generate, filter, train, evaluate; infer, submit."""

    model: Annotated[str, _help("folder of the base model")]
    strict: Annotated[bool, _help(_STRICT)] = False
    iterations: Annotated[Count, _help("turns of the loop at most")] = 3
    audio_root: Annotated[str, _help(_AUDIO_ROOT)] = ""
    data: DataRecipe = DataRecipe()
    prompt: PromptRecipe = PromptRecipe()
    sampling: SamplingRecipe = SamplingRecipe()
    filter: FilterRecipe = FilterRecipe()
    lora: LoraSettings = LoraSettings()
    optim: OptimSettings = OptimSettings()
    gate: GateRecipe = GateRecipe()
    infer: InferRecipe = InferRecipe()
    engine: EngineSettings = EngineSettings()
    checkpoint_every_steps: Annotated[Count, _help("optimiser steps between checkpoints")] = 20
    fail_on_refusal: Annotated[bool, _help("exit 4 when no iteration was promoted")] = False
    output: Annotated[Path | None, _help("folder for copies of submission.zip, report.html")] = None


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
        raise SettingsError(f"{_first_line(error)}; see {prog} --help") from None


def recipe(*groups: tuple[str, Group]) -> dict[str, Any]:
    """The named groups, less their placement, as the JSON object that goes into a fingerprint."""
    return {
        name: group.model_dump(mode="json", exclude=set(group.placement)) for name, group in groups
    }


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
    commands = (IngestCommand, GenerateCommand, SubmitCommand, ReportCommand, RunCommand)
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


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
