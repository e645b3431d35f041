"""A policy gradient over candidates: clipped ratios, advantages, importance weights, divergences.

Not here: advantages themselves (mmar_jobs/group.py), the forward pass (step.py).

Three policies gave each token a log-probability: the engine, when it drew it; the trainer before
its first step ("old": the same model, other kernels and rounding); the trainer now. All are of the
model's own softmax, before temperature and truncation. The ratio that is clipped is now/old; what
engine and old disagree on is an importance weight, cut above (Yao et al. 2025, "Your efficient RL
framework secretly brings you off-policy RL training"). The base, for a divergence from it, is the
same model with its adapter switched off, and is asked once, as old is.

Dropout is off: a mask would be a policy of its own, and its ratio to the old one noise.

Legend: C completion tokens of a row, N candidates of a step.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import torch
from torch import Tensor

from mmar_jobs.errors import GateError
from mmar_jobs.qlora.loss import linear_token_loss, token_logprobs
from mmar_jobs.qlora.packing import PackedRow, PolicyRow, TrainRow, pack
from mmar_jobs.qlora.recipes import PolicyRecipe
from mmar_jobs.qlora.step import Fit, StepLoss, predicting_hidden

# Of the mean difference of trainer and engine, nats a token. Measured on the tiny model in fp32:
# 0.00004 where all is right, 0.3 with another prompt, 1.9 deaf, 2.6 with another clip. A trainer in
# NF4 beside an engine in 16 bits is expected at hundredths.
MAX_MISMATCH_NATS: Final = 0.3
_SCORED_TOGETHER: Final = 256
_SUMS: Final = ("tokens", "low", "high", "kl_old", "kl_base", "cut", "logprob")


class TokenFacts(NamedTuple):
    """What is known of a row's tokens before the step, each (C,); `scale` of the policy's loss.

    `example` is the coefficient of the cross-entropy beside it.
    """

    advantage: Tensor
    engine: Tensor
    old: Tensor
    base: Tensor
    scale: Tensor
    example: Tensor


def divergence(log_ratio: Tensor) -> Tensor:
    """Of the policy that drew a token from another, by log(other / drawer): never below 0.

    The estimator k3 of http://joschu.net/blog/kl-approx.html.
    """
    return torch.expm1(log_ratio) - log_ratio


def importance(facts: TokenFacts, recipe: PolicyRecipe) -> Tensor:
    """Weight of each token for having been drawn by the engine, (C,)."""
    if recipe.max_importance == 0:
        return torch.ones_like(facts.old)
    return (facts.old - facts.engine).exp().clamp(max=recipe.max_importance)


def policy_loss(logprob_C: Tensor, facts: TokenFacts, recipe: PolicyRecipe) -> Tensor:
    """The row's loss, a sum over its tokens; its gradient for `logprob_C` is that of the policy."""
    ratio_C = (logprob_C - facts.old).exp()
    clipped_C = ratio_C.clamp(1 - recipe.clip_low, 1 + recipe.clip_high)
    gain_C = torch.minimum(ratio_C * facts.advantage, clipped_C * facts.advantage)
    loss_C = -importance(facts, recipe) * gain_C
    if recipe.kl_weight:
        loss_C = loss_C + recipe.kl_weight * divergence(facts.base - logprob_C)
    return (facts.scale * loss_C - facts.example * logprob_C).sum()


def token_sums(logprob_C: Tensor, facts: TokenFacts, recipe: PolicyRecipe) -> Tensor:
    """What the metrics of a step are made of, in the order of _SUMS, fp64."""
    ratio_C = (logprob_C - facts.old).exp()
    is_low_C = (ratio_C < 1 - recipe.clip_low) & (facts.advantage < 0)
    is_high_C = (ratio_C > 1 + recipe.clip_high) & (facts.advantage > 0)
    is_cut_C = (facts.old - facts.engine).exp() > (recipe.max_importance or torch.inf)
    columns = (
        torch.ones_like(ratio_C),
        is_low_C,
        is_high_C,
        divergence(logprob_C - facts.old),
        divergence(facts.base - logprob_C),
        is_cut_C,
        logprob_C,
    )
    return torch.stack([column.sum(dtype=torch.float64) for column in columns])


@dataclass(frozen=True, slots=True)
class _PolicyLossOfStep:
    """The mean over a step's candidates."""

    rows: Sequence[PolicyRow]
    recipe: PolicyRecipe

    @property
    def num_sums(self) -> int:
        return len(_SUMS)

    def of_row(self, fit: Fit, packed: PackedRow) -> tuple[Tensor, Tensor]:
        hidden_CH, target_C = predicting_hidden(fit.lora, self.rows, packed, fit.audio)
        facts = TokenFacts(
            *(column.to(hidden_CH.device, non_blocking=True) for column in self._facts(packed))
        )
        loss, logprob_C = linear_token_loss(
            hidden_CH,
            fit.lora.model.lm_head.weight,
            target_C,
            lambda logprob_C: policy_loss(logprob_C, facts, self.recipe),
        )
        return loss, token_sums(logprob_C, facts, self.recipe)

    def check(self, loss: float, sums: Sequence[float], *, step: int) -> dict[str, float]:
        """The step's metrics: means over its tokens."""
        del loss, step
        total = dict(zip(_SUMS, sums, strict=True))
        num_tokens = total["tokens"]
        metrics = {
            "kl_old": total["kl_old"] / num_tokens,
            "clip_fraction": (total["low"] + total["high"]) / num_tokens,
            "clip_fraction_low": total["low"] / num_tokens,
            "clip_fraction_high": total["high"] / num_tokens,
            "importance_cut_fraction": total["cut"] / num_tokens,
            "mean_logprob": total["logprob"] / num_tokens,
            "mean_abs_advantage": sum(abs(row.advantage) for row in self.rows) / len(self.rows),
        }
        if self.recipe.kl_weight:
            metrics["kl_base"] = total["kl_base"] / num_tokens
        return metrics

    def _facts(self, packed: PackedRow) -> TokenFacts:
        members = [self.rows[member] for member in packed.members]
        counts = torch.tensor([row.num_labels for row in members])

        def spread(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32).repeat_interleave(counts)

        def joined(columns: Sequence[Tensor | None]) -> Tensor:
            return torch.cat([column for column in columns if column is not None])

        old_C = joined([row.old_C for row in members])
        return TokenFacts(
            advantage=spread([row.advantage for row in members]),
            engine=joined([row.engine_C for row in members]),
            old=old_C,
            base=joined([row.base_C for row in members]) if self.recipe.kl_weight else old_C,
            scale=spread([row.scale / len(self.rows) for row in members]),
            example=spread(
                [
                    self.recipe.example_weight * row.weight / row.num_labels / len(self.rows)
                    for row in members
                ]
            ),
        )


@dataclass(frozen=True, slots=True)
class PolicyGradient:
    """GRPO's objective over PolicyRows, with a cross-entropy beside it where the recipe says so."""

    recipe: PolicyRecipe
    uses_dropout = False

    @property
    def name(self) -> str:
        """See Objective."""
        return f" {self.recipe}"

    def reference(self, fit: Fit, rows: Sequence[TrainRow]) -> dict[str, Tensor]:
        """How likely the trainer, and where needed the base, finds each token: a forward pass each.

        On the tiny model it costs 0.46 of an epoch's steps, on the 30B model an estimated hour for
        160,000 candidates. Kept, it adds 4 bytes a token to a checkpoint: a fortieth of that one's.
        """
        asked = _candidates(rows)
        found = {"old": torch.cat(score(fit, asked))}
        if self.recipe.kl_weight:
            found["base"] = torch.cat(score(fit, asked, is_base=True))
        return found

    def prepare(
        self, rows: Sequence[TrainRow], reference: Mapping[str, Tensor]
    ) -> tuple[list[TrainRow], dict[str, float]]:
        """See Objective; GateError where the trainer is not the model that the engine was."""
        asked = _candidates(rows)
        counts = [row.num_labels for row in asked]
        old = torch.split(reference["old"], counts)
        base: Sequence[Tensor | None] = [None] * len(asked)
        if self.recipe.kl_weight:
            base = torch.split(reference["base"], counts)
        facts = _mismatch(asked, old, self.recipe)
        length = sum(row.num_labels for row in asked) / len(asked)
        prepared: list[TrainRow] = [
            replace(
                row,
                old_C=own_C,
                base_C=base_C,
                scale=1 / (row.num_labels if self.recipe.mean_over_tokens else length),
            )
            for row, own_C, base_C in zip(asked, old, base, strict=True)
        ]
        return prepared, facts

    def of_step(self, fit: Fit, rows: Sequence[TrainRow]) -> StepLoss:
        """See Objective."""
        del fit
        return _PolicyLossOfStep(_candidates(rows), self.recipe)

    def stop_reason(self, metrics: Mapping[str, float]) -> str | None:
        """Once the policy is too far from the one that drew the candidates they teach no more."""
        limits = {"kl_old": self.recipe.max_kl, "clip_fraction": self.recipe.max_clip_fraction}
        for name, limit in limits.items():
            if limit and metrics[name] > limit:
                return f"{name} {metrics[name]:.3g} exceeds {limit:g}"
        return None


def _candidates(rows: Sequence[TrainRow]) -> list[PolicyRow]:
    found = [row for row in rows if isinstance(row, PolicyRow)]
    assert len(found) == len(rows), "a policy gradient learns from candidates"
    return found


@torch.no_grad()
def score(fit: Fit, rows: Sequence[PolicyRow], *, is_base: bool = False) -> list[Tensor]:
    """Log-probabilities of every row's completion tokens by the model as it is, on the host.

    `is_base` switches the adapter off. The processes of a training share the work.
    """
    lora, workers = fit.lora, fit.gradients.workers
    found: dict[int, Tensor] = {}
    turn = 0
    with lora.switched_off() if is_base else nullcontext():
        for first in range(0, len(rows), _SCORED_TOGETHER):
            together = rows[first : first + _SCORED_TOGETHER]
            for packed in pack(together, fit.recipe.token_budget):
                if turn % workers.num == workers.rank:
                    hidden_CH, target_C = predicting_hidden(lora, together, packed, fit.audio)
                    logprob_C = token_logprobs(hidden_CH, lora.model.lm_head.weight, target_C)
                    counts = [together[member].num_labels for member in packed.members]
                    parts = torch.split(logprob_C.cpu(), counts)
                    found |= {
                        first + member: part
                        for member, part in zip(packed.members, parts, strict=True)
                    }
                turn += 1
    everywhere = {index: part for share in workers.gather(found) for index, part in share.items()}
    return [everywhere[index] for index in range(len(rows))]


def _mismatch(
    rows: Sequence[PolicyRow], old: Sequence[Tensor], recipe: PolicyRecipe
) -> dict[str, float]:
    """How the trainer differs from the engine on the same tokens, nats a token."""
    engine_C = torch.cat([row.engine_C for row in rows]).double()
    log_ratio_C = torch.cat(list(old)).double() - engine_C
    facts = {
        "engine_kl": float(divergence(log_ratio_C).mean()),
        "engine_mean_abs_nats": float(log_ratio_C.abs().mean()),
        "engine_max_abs_nats": float(log_ratio_C.abs().max()),
        "importance_cut_fraction": float(
            (log_ratio_C.exp() > (recipe.max_importance or torch.inf)).double().mean()
        ),
    }
    if not facts["engine_mean_abs_nats"] <= MAX_MISMATCH_NATS:
        worst = max(
            zip(rows, old, strict=True),
            key=lambda pair: float((pair[0].engine_C - pair[1]).abs().mean()),
        )
        raise GateError(
            f"trainer and engine differ by {facts['engine_mean_abs_nats']:.2g} nats a token on the "
            f"same candidates, most on question {worst[0].question_id}: the trainer's base, parent "
            "or prompt is another, or it does not hear; nothing was trained"
        )
    return facts
