"""The two recipes of training: what the adapter is, and how it is fitted.

Defaults are those of settings.py. Not here: environment variables and flags (settings.py).
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Literal

from mmar_jobs.errors import SettingsError

Weighting = Literal["example", "token"]
Optimizer = Literal["adamw", "adamw8bit"]
Decay = Literal["cosine", "constant"]


def _check(*, condition: bool, setting: str, value: object, need: str) -> None:
    if not condition:
        raise SettingsError(f"training recipe: {setting} is {value}, must be {need}")


@dataclass(frozen=True, slots=True)
class Saved:
    """What a fused layer keeps for its backward pass instead of computing it again there.

    `gate_up`: the experts' gate_up outputs. `attention`: everything of the attention block. Without
    either, its inputs only. Placement: it changes memory and speed, not results.
    """

    gate_up: bool = False
    attention: bool = False


@dataclass(frozen=True, slots=True)
class LoraRecipe:
    """Rank, scale (alpha / rank) and input dropout of every LoRA pair.

    Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685. Wrong values are a SettingsError.
    """

    rank: int = 64
    alpha: float = 128.0
    dropout: float = 0.05

    def __post_init__(self) -> None:
        _check(condition=self.rank >= 1, setting="rank", value=self.rank, need="at least 1")
        _check(condition=self.alpha > 0, setting="alpha", value=self.alpha, need="above 0")
        _check(
            condition=0 <= self.dropout < 1, setting="dropout", value=self.dropout, need="in [0, 1)"
        )

    @property
    def scaling(self) -> float:
        """Factor on B·A."""
        return self.alpha / self.rank


@dataclass(frozen=True, slots=True)
class TrainRecipe:
    """How the adapter is fitted. `token_budget` counts tokens of one packed row.

    `weighting`: "example" is sum_i w_i mean_nll_i / sum_i w_i over the examples of a step, "token"
    is sum_i w_i sum_nll_i / sum_i w_i n_i. `warmup_fraction` and `decay` shape the learning rate
    over all steps. `checkpoint_every_steps` is placement: it does not change the result and is not
    hashed.
    """

    learning_rate: float
    num_epochs: int = 1
    examples_per_step: int = 8
    token_budget: int = 8192
    warmup_fraction: float = 0.05
    decay: Decay = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    betas: tuple[float, float] = (0.9, 0.98)
    seed: int = 0
    weighting: Weighting = "example"
    optimizer: Optimizer = "adamw"
    checkpoint_every_steps: int = 20

    def __post_init__(self) -> None:
        for name in ("num_epochs", "examples_per_step", "token_budget", "checkpoint_every_steps"):
            value = getattr(self, name)
            _check(condition=value >= 1, setting=name, value=value, need="at least 1")
        for name in ("learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            _check(condition=value > 0, setting=name, value=value, need="above 0")
        warmup = self.warmup_fraction
        _check(
            condition=0 <= warmup <= 1, setting="warmup_fraction", value=warmup, need="in [0, 1]"
        )
        betas_fit = all(0 <= beta < 1 for beta in self.betas)
        _check(condition=betas_fit, setting="betas", value=self.betas, need="in [0, 1)")


@dataclass(frozen=True, slots=True)
class PolicyRecipe:
    """How a policy gradient is taken.

    A token's ratio to the policy before the first step counts between 1 - `clip_low` and 1 +
    `clip_high` (PPO, arXiv 1707.06347; unequal sides as in DAPO, arXiv 2503.14476). Its weight for
    having been drawn by the engine and not by the trainer is cut at `max_importance`; 0: none.
    `kl_weight` times the divergence from the base is added. `mean_over_tokens` gives each candidate
    the same weight whatever its length (GRPO); without it each token has (Dr. GRPO, 2503.20783).
    `example_weight` is that of the cross-entropy of candidates that are examples too. Training
    ends after a step whose divergence from the old policy exceeds `max_kl`, nats a token, or whose
    share of clipped tokens exceeds `max_clip_fraction`; 0: never.
    """

    clip_low: float = 0.2
    clip_high: float = 0.28
    max_importance: float = 2.0
    kl_weight: float = 0.0
    mean_over_tokens: bool = False
    example_weight: float = 0.0
    max_kl: float = 0.0
    max_clip_fraction: float = 0.0

    def __post_init__(self) -> None:
        _check(
            condition=0 < self.clip_low < 1,
            setting="clip_low",
            value=self.clip_low,
            need="above 0 and below 1",
        )
        _check(
            condition=self.clip_high > 0, setting="clip_high", value=self.clip_high, need="above 0"
        )
        for name in (
            "max_importance",
            "kl_weight",
            "example_weight",
            "max_kl",
            "max_clip_fraction",
        ):
            value = getattr(self, name)
            _check(condition=value >= 0, setting=name, value=value, need="at least 0")


def fingerprint(lora: LoraRecipe, train: TrainRecipe, data_digest: str) -> str:
    """SHA-256 over all that changes the adapter: both recipes and the digest of the rows."""
    fitted = dataclasses.asdict(train)
    del fitted["checkpoint_every_steps"]
    payload = {"lora": dataclasses.asdict(lora), "train": fitted, "data": data_digest}
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()
