"""The groups of settings: what changes a result (recipe) and what does not (placement).

A group is frozen and closed; `recipe` turns groups into the JSON that is hashed into fingerprints.
Not here: where values come from (settings.py), and what they do.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from mmar_jobs.errors import SettingsError
from mmar_jobs.identity import BFLOAT16_TOLERANCE_NATS, CANARY_TOLERANCE_NATS
from mmar_jobs.prompting.source import read_version

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]


def knob(text: str) -> Any:
    """A field with its line of --help."""
    return Field(description=text)


def _installed(optimizer: str) -> str:
    """Refuse an optimiser whose package lacks, before hours of generation are spent."""
    if optimizer == "adamw8bit" and find_spec("bitsandbytes") is None:
        raise ValueError("needs bitsandbytes, which is not installed: choose adamw")
    return optimizer


Objective = Literal["rest", "grpo", "rest+grpo"]
OBJECTIVE_TEXT: Final = (
    "what training learns from: right candidates (rest), all by their advantage (grpo), both"
)


def tensorboard_installed(folder: Path | None) -> Path | None:
    """Refuse event files where the package that writes them lacks, before a GPU is waited for."""
    if folder is not None and find_spec("tensorboard") is None:
        raise ValueError("needs tensorboard, which is not installed: mmar-jobs[tensorboard]")
    return folder


class Group(BaseModel):
    """A frozen, closed group of settings; docstrings of subclasses head their section of --help."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    # Names of fields that change where or how fast a stage runs, but not its result.
    placement: ClassVar[frozenset[str]] = frozenset()

    def recipe(self) -> dict[str, Any]:
        """What of the group is hashed, as JSON."""
        return self.model_dump(mode="json", exclude=set(self.placement))


class PromptRecipe(Group):
    """The prompt (recipe)."""

    version: Annotated[
        str,
        AfterValidator(read_version),
        knob("prompt text: baseline, v7, v8, v9, v12, or @FILE with a text of your own"),
    ] = "v9"


class DataRecipe(Group):
    """Ingest: which questions are used and how they are split (recipe)."""

    heldout_fraction: Annotated[
        Fraction, knob("share of clips held out for the gate when --heldout is not given")
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
        knob(
            "a question that shares audio, id or source with benchmark or --heldout: refuse, drop"
        ),
    ] = "refuse"
    seed: Annotated[int, knob("seed of the split by audio")] = 0


class RepetitionDetectionRecipe(Group):
    """Servers end a completion in which a pattern repeats; max_pattern_size 0 turns it off."""

    max_pattern_size: Annotated[CountOrZero, knob("longest pattern, tokens; 0 turns it off")] = 0
    min_pattern_size: Annotated[Count, knob("shortest pattern, tokens")] = 1
    min_count: Annotated[int, Field(ge=2, description="times in a row that end it")] = 8

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if 0 < self.max_pattern_size < self.min_pattern_size:
            raise ValueError("max_pattern_size is below min_pattern_size: no pattern is between")
        return self


class SamplingRecipe(Group):
    """Generate: how candidates are drawn (recipe)."""

    num_candidates: Annotated[Count, knob("candidates per question, K")] = 16
    adaptive: Annotated[
        bool, knob("draw K in blocks (K/4, K/4, K/2), stop once a question is settled")
    ] = False
    temperature: Annotated[float, Field(gt=0, description="softmax temperature")] = 0.9
    top_p: Annotated[Fraction, knob("nucleus: smallest set of tokens with this probability")] = 0.95
    top_k: Annotated[CountOrZero, knob("keep the k likeliest tokens; 0 keeps all")] = 0
    repetition_penalty: Annotated[
        float, Field(gt=0, description="penalty on tokens seen before; 1 is none")
    ] = 1.0
    max_tokens: Annotated[Count, knob("longest completion, tokens")] = 6000
    thinking_token_budget: Annotated[
        CountOrZero,
        knob("servers force the end of the thinking after so many tokens; 0 sets no limit"),
    ] = 0
    repetition_detection: RepetitionDetectionRecipe = RepetitionDetectionRecipe()
    questions_per_iteration: Annotated[
        CountOrZero,
        knob("fresh questions each iteration takes from the training split; 0 takes all each time"),
    ] = 0
    questions_per_shard: Annotated[Count, knob("questions per durable shard")] = 32
    seed: Annotated[int, knob("seed of every draw")] = 0


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

    strategy: Annotated[Literal["top_k", "all"], knob("correct candidates kept per question")] = (
        "top_k"
    )
    top_k: Annotated[Count, knob("candidates kept per question by top_k")] = 3
    min_valid: Annotated[Count, knob("valid attempts below which a question is undecided")] = 4
    weights: ZoneWeights = ZoneWeights()
    audio_dependence: Annotated[
        bool, knob("drop questions that the model also answers right with muted audio")
    ] = False
    seed: Annotated[int, knob("seed of ties")] = 0


class RewardRecipe(Group):
    """Filter, for the objectives grpo and rest+grpo: what a candidate earns (recipe)."""

    correct: Annotated[float, Field(ge=0, description="weight of a right answer")] = 1.0
    format: Annotated[
        float, Field(ge=0, description="weight of one thinking and one choice, right or wrong")
    ] = 0.1
    length: Annotated[
        float, Field(ge=0, description="weight of what the last fifth of the token limit costs")
    ] = 0.0
    loop: Annotated[
        float, Field(ge=0, description="weight of what words cost that come 8 times in a row")
    ] = 0.0
    audio_dependence: Annotated[
        float, Field(ge=0, description="weight of a right answer to what is wrong without sound")
    ] = 0.0
    rubric: Annotated[
        float, Field(ge=0, description="weight of --rubric-scores, a judge's of right candidates")
    ] = 0.0
    divide_by_std: Annotated[
        bool, knob("divide advantages by the deviation of their question's rewards")
    ] = False

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each reward by its name in the registry."""
        weights: dict[str, float] = self.model_dump(exclude={"divide_by_std"})
        return weights


class LoraSettings(Group):
    """Train: the adapter (recipe)."""

    rank: Annotated[Count, knob("LoRA rank r")] = 64
    alpha: Annotated[float, Field(gt=0, description="LoRA alpha; the scale is alpha / r")] = 128.0
    dropout: Annotated[BelowOne, knob("dropout on the LoRA input")] = 0.05
    # The 30B model in bf16 and what it trains do not fit one 80 GB GPU; in NF4 they do.
    quantization: Annotated[
        Literal["nf4", "none"],
        knob("base weights in training: NF4 (needs bitsandbytes), or as engine.dtype"),
    ] = "nf4"


def check_installed(lora: LoraSettings) -> None:
    """SettingsError where a package for these settings lacks; a default is checked as well."""
    if lora.quantization == "nf4" and find_spec("bitsandbytes") is None:
        raise SettingsError(
            "--lora.quantization nf4 needs bitsandbytes, which is not installed: install "
            "mmar-jobs[train], or choose none"
        )


class OptimSettings(Group):
    """Train: the optimiser (recipe)."""

    learning_rates: Annotated[
        tuple[Annotated[float, Field(gt=0)], ...],
        Field(min_length=1, description="peak learning rate per iteration; the last one repeats"),
    ] = (2e-5, 1e-5, 5e-6)
    num_epochs: Annotated[Count, knob("passes over the examples")] = 1
    examples_per_step: Annotated[Count, knob("examples per optimiser step")] = 8
    token_budget: Annotated[Count, knob("tokens per packed row; longer examples are dropped")] = (
        8192
    )
    weighting: Annotated[
        Literal["example", "token"], knob("mean over examples, or over all their tokens")
    ] = "example"
    optimizer: Annotated[
        Literal["adamw", "adamw8bit"],
        AfterValidator(_installed),
        knob("adamw8bit needs bitsandbytes"),
    ] = "adamw"
    betas: Annotated[tuple[BelowOne, BelowOne], knob("AdamW betas")] = (0.9, 0.98)
    weight_decay: Annotated[float, Field(ge=0, description="AdamW weight decay")] = 0.0
    warmup_fraction: Annotated[Fraction, knob("share of the steps with rising learning rate")] = (
        0.05
    )
    decay: Annotated[
        Literal["cosine", "constant"], knob("learning rate after the warm-up: down to 0, or flat")
    ] = "cosine"
    max_grad_norm: Annotated[float, Field(gt=0, description="gradient norm is clipped to this")] = (
        1.0
    )
    seed: Annotated[int, knob("seed of LoRA's first weights, dropout and order")] = 0


class GrpoRecipe(Group):
    """Train, for the objectives grpo and rest+grpo: the policy gradient (recipe)."""

    learning_rates: Annotated[
        tuple[Annotated[float, Field(gt=0)], ...],
        Field(min_length=1, description="peak learning rate per iteration; the last one repeats"),
    ] = (1e-5, 5e-6)
    num_epochs: Annotated[Count, knob("passes over the candidates at most")] = 2
    candidates_per_step: Annotated[Count, knob("candidates per optimiser step")] = 64
    mean_over_tokens: Annotated[
        bool, knob("each candidate weighs the same whatever its length; else each token does")
    ] = False
    clip_low: Annotated[
        float, Field(gt=0, lt=1, description="a token's ratio counts from 1 - this on")
    ] = 0.2
    clip_high: Annotated[float, Field(gt=0, description="and up to 1 + this")] = 0.28
    max_importance: Annotated[
        float,
        Field(ge=0, description="cut of a token's trainer/engine probability; 0: not weighed"),
    ] = 2.0
    kl_weight: Annotated[
        float, Field(ge=0, description="weight of the divergence from the base")
    ] = 0.0
    max_kl: Annotated[
        float,
        Field(ge=0, description="divergence, nats a token, that ends training early; 0: none"),
    ] = 0.1
    max_clip_fraction: Annotated[
        Fraction, knob("share of clipped tokens that ends training early; 0: none")
    ] = 0.3
    example_weight: Annotated[
        float, Field(ge=0, description="rest+grpo: weight of the right candidates' cross-entropy")
    ] = 0.1


class GateRecipe(Group):
    """Evaluate: when a child is promoted (recipe)."""

    alpha: Annotated[Fraction, knob("the paired p-value (exact McNemar) must be below this")] = 0.05
    min_gain: Annotated[Fraction, knob("gain in accuracy that a child must exceed, 0 to 1")] = 0.0
    regression_alpha: Annotated[
        Fraction,
        knob("a category worse with a Holm-adjusted p-value below this refuses the child"),
    ] = 0.05
    patience: Annotated[Count, knob("refusals in a row after which the loop stops")] = 2
    muted_control: Annotated[bool, knob("also ask the child with muted audio; deaf is refused")] = (
        True
    )


class InferRecipe(Group):
    """Infer: how the benchmark is answered (recipe)."""

    votes: Annotated[Count, knob("1 answers greedily; n > 1 takes the majority of n answers")] = 1
    seed: Annotated[int, knob("seed of the votes")] = 0


class HardwareSettings(Group):
    """Train: where and how it runs (placement)."""

    placement: ClassVar[frozenset[str]] = frozenset({"device", "memory_gb", "processes"})

    device: Annotated[
        Literal["auto", "cpu", "cuda"], knob("auto: a GPU where there is one, else the CPU")
    ] = "auto"
    memory_gb: Annotated[
        float,
        Field(ge=0, description="GPU memory that training may fill, 10^9 bytes; 0: all but 2"),
    ] = 0.0
    processes: Annotated[
        Count, knob("processes of data parallel training, a GPU each; results differ by rounding")
    ] = 1


def _server_addresses(text: str) -> str:
    """Comma-separated addresses in one form; an error for what is none, or holds a secret."""
    return ",".join(_server_address(part.strip()) for part in text.split(",") if part.strip())


def _server_address(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_bad = parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0
    except ValueError:
        is_bad = True
    if is_bad:
        raise ValueError("give addresses like http://host:8000")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("leave user, password and query out: the key is VLLM_API_KEY's")
    return url.rstrip("/").removesuffix("/v1")


class EngineSettings(Group):
    """The engine that answers prompts: in this process, or vLLM servers (recipe, but for where)."""

    placement: ClassVar[frozenset[str]] = frozenset(
        {"threads", "servers", "backend", "media_dir", "merged_dir", "outage_s"}
    )

    servers: Annotated[
        str,
        AfterValidator(_server_addresses),
        knob("vLLM servers, URL,URL; key from VLLM_API_KEY; empty: answer in this process"),
    ] = ""
    backend: Annotated[
        Literal["transformers", "vllm"],
        knob("what answers in this process: transformers, or vLLM on its GPUs"),
    ] = "transformers"
    vllm_args: Annotated[
        str, knob("further options of `vllm serve` for vLLM in this process, as one text (recipe)")
    ] = ""
    merged_dir: Annotated[
        str, knob("folder that keeps base and adapter merged for vLLM in this process")
    ] = ""
    media_dir: Annotated[
        str, knob("folder for clips that the servers read too; empty: clips travel in requests")
    ] = ""
    outage_s: Annotated[
        float, Field(gt=0, description="servers that are gone for longer end the stage, seconds")
    ] = 600.0
    dtype: Annotated[
        Literal["float32", "bfloat16"],
        knob("precision of the weights, in process or as the servers were started (recipe)"),
    ] = "float32"
    rows_per_batch: Annotated[
        Count, knob("sequences decoded together; part of the recipe, rounding depends on it")
    ] = 512
    threads: Annotated[CountOrZero, knob("CPU threads; 0 takes all cores")] = 0

    @model_validator(mode="after")
    def _are_read(self) -> Self:
        if self.servers and self.backend == "vllm":
            raise ValueError("servers and backend vllm exclude each other: leave one of them out")
        for name in ("vllm_args", "merged_dir"):
            if getattr(self, name) and self.backend != "vllm":
                raise ValueError(
                    f"{name.replace('_', '-')} is for vLLM in this process: give --engine.backend "
                    "vllm, or leave it out"
                )
        return self

    @property
    def kind(self) -> Literal["transformers", "vllm"]:
        """What answers; part of the recipe, for each rounds in its own way."""
        return "vllm" if self.servers else self.backend

    def recipe(self) -> dict[str, Any]:
        """See Group; whether vLLM answers here or in servers does not matter, that it does does."""
        return super().recipe() | {"kind": self.kind}

    @property
    def canary_tolerance_nats(self) -> float:
        """How far a canary's logprobs may be from those that the trainer recorded in process."""
        is_coarse = self.kind == "vllm" and self.dtype == "bfloat16"
        return BFLOAT16_TOLERANCE_NATS if is_coarse else CANARY_TOLERANCE_NATS

    @property
    def server_urls(self) -> tuple[str, ...]:
        """Addresses of the servers."""
        return tuple(self.servers.split(",")) if self.servers else ()

    def in_process(self) -> "EngineSettings":
        """The same by transformers in this process, for what no server serves yet."""
        return self.model_copy(
            update={"servers": "", "backend": "transformers", "vllm_args": "", "merged_dir": ""}
        )


def recipe(*groups: tuple[str, Group]) -> dict[str, Any]:
    """The named groups, less their placement, as the JSON object that goes into a fingerprint."""
    return {name: group.recipe() for name, group in groups}
