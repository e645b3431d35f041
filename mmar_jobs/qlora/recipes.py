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


def fingerprint(lora: LoraRecipe, train: TrainRecipe, data_digest: str) -> str:
    """SHA-256 over all that changes the adapter: both recipes and the digest of the rows."""
    fitted = dataclasses.asdict(train)
    del fitted["checkpoint_every_steps"]
    payload = {"lora": dataclasses.asdict(lora), "train": fitted, "data": data_digest}
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()
