"""One optimizer step: forward and backward over packed rows, clipped, then the optimizer.

What is minimised is an Objective: cross-entropy here, a policy's in policy.py. Not here: which
examples a step takes (packing.py), resume and gates over a run (trainer.py).

Legend: S tokens of a row, A audio tokens of a clip, C completion tokens of a row, H hidden.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Final, Protocol

import torch
from torch import Tensor

from mmar_jobs.errors import GateError
from mmar_jobs.qlora.attention import packed_rows, row_layout
from mmar_jobs.qlora.distributed import ALONE, GradientSum
from mmar_jobs.qlora.gates import check_weighted_loss
from mmar_jobs.qlora.lora import LoraModel
from mmar_jobs.qlora.loss import linear_cross_entropy, token_coefficients
from mmar_jobs.qlora.packing import PackedRow, TrainRow, pack
from mmar_jobs.qlora.recipes import TrainRecipe, Weighting

_ROWS_PER_STEP = 1 << 20  # room for the row's number in the dropout key


@dataclass(frozen=True, slots=True)
class StepResult:
    """Loss (nats, weighted by the recipe), gradient norm before clipping, tokens seen.

    `metrics` are the objective's own.
    """

    loss: float
    grad_norm: float
    num_tokens: int
    metrics: Mapping[str, float] = field(default_factory=dict)


class StepLoss(Protocol):
    """The loss of one step's examples, row by row."""

    @property
    def num_sums(self) -> int:
        """How many numbers are summed over the rows beside the loss."""
        ...

    def of_row(self, fit: "Fit", packed: PackedRow) -> tuple[Tensor, Tensor]:
        """This row's part of the loss, differentiable, and of the sums, (num_sums,) fp64."""
        ...

    def check(self, loss: float, sums: Sequence[float], *, step: int) -> dict[str, float]:
        """Prove the finished step's loss from its sums; returns metrics."""
        ...


class Objective(Protocol):
    """What training minimises."""

    @property
    def uses_dropout(self) -> bool:
        """Whether LoRA's inputs are dropped."""
        ...

    @property
    def name(self) -> str:
        """All that changes its result; a checkpoint of another one is refused."""
        ...

    def reference(self, fit: "Fit", rows: Sequence[TrainRow]) -> dict[str, Tensor]:
        """What the model says of the rows before the first step, by name, on the host.

        Called in all processes, with the factors that training begins with. Checkpoints keep it.
        """
        ...

    def prepare(
        self, rows: Sequence[TrainRow], reference: Mapping[str, Tensor]
    ) -> tuple[list[TrainRow], dict[str, float]]:
        """The rows with what the reference says of them, and facts about them."""
        ...

    def of_step(self, fit: "Fit", rows: Sequence[TrainRow]) -> StepLoss:
        """The loss of one step's prepared rows."""
        ...

    def stop_reason(self, metrics: Mapping[str, float]) -> str | None:
        """Why training must end after a step with these metrics, if it must."""
        ...


@dataclass(frozen=True, slots=True)
class Fit:
    """What all steps of one fit share; `audio` has the (A, H) embeddings of every clip by digest.

    `gradients` sums over the processes of a data parallel run.
    """

    lora: LoraModel
    recipe: TrainRecipe
    audio: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer
    gradients: GradientSum = field(default_factory=lambda: GradientSum({}, ALONE))
    objective: Objective = field(default_factory=lambda: CROSS_ENTROPY)


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    # The host does not wait: what a step needs from the CPU must not stop the GPU's queue.
    return tensor.to(device, non_blocking=True)


def row_embeds(
    lora: LoraModel, rows: Sequence[TrainRow], packed: PackedRow, audio: Mapping[str, Tensor]
) -> Tensor:
    """Input embeddings of a row, (1, S, H), with the clips' in place of audio tokens."""
    model = lora.model
    device = model.model.embed_tokens.weight.device
    audio_at_A = (packed.input_ids_S == model.config.audio_token_id).nonzero()[:, 0]
    audio_AH = torch.cat([audio[rows[member].audio_sha256] for member in packed.members])
    if audio_AH.shape[0] != audio_at_A.shape[0]:
        ids = ", ".join(rows[member].question_id for member in packed.members)
        raise GateError(
            f"questions {ids}: {audio_at_A.shape[0]} audio tokens in their rows but "
            f"{audio_AH.shape[0]} embeddings: clips and prompts do not belong together"
        )
    embeds_SH: Tensor = model.model.embed_tokens(_to(packed.input_ids_S, device))
    audio_AH = audio_AH.to(device, embeds_SH.dtype, non_blocking=True)
    return embeds_SH.index_copy(0, _to(audio_at_A, device), audio_AH)[None]


def row_hidden(
    lora: LoraModel, rows: Sequence[TrainRow], packed: PackedRow, audio: Mapping[str, Tensor]
) -> Tensor:
    """Final hidden states of a row, (S, H); no example sees another one."""
    model = lora.model
    embeds_1SH = row_embeds(lora, rows, packed, audio)
    position_ids_41S = _to(packed.position_ids_41S, model.device)
    if lora.graphs and torch.is_grad_enabled():
        cos_1SD, sin_1SD = model.model.rotary_emb(embeds_1SH, position_ids_41S[1:])
        out_SH = lora.graphs.forward(embeds_1SH[0], cos_1SD[0], sin_1SD[0], packed.lengths)
        normed_SH: Tensor = model.model.norm(out_SH)
        return normed_SH
    with packed_rows(model):
        out = model.model(
            inputs_embeds=embeds_1SH,
            position_ids=position_ids_41S,
            attention_mask=None,
            use_cache=False,
            row_layout=row_layout(packed.lengths, model.device),
        )
    hidden_SH: Tensor = out.last_hidden_state[0]
    return hidden_SH


def predicting_hidden(
    lora: LoraModel, rows: Sequence[TrainRow], packed: PackedRow, audio: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """The (C, H) hidden states of a row that predict its completion tokens, and these, (C,)."""
    hidden_SH = row_hidden(lora, rows, packed, audio)
    device = hidden_SH.device
    hidden_CH = hidden_SH.index_select(0, _to(packed.predict_C, device))
    return hidden_CH, _to(packed.target_C, device)


def row_loss(
    lora: LoraModel,
    rows: Sequence[TrainRow],
    packed: PackedRow,
    *,
    audio: Mapping[str, Tensor],
    coefficients: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """This row's part of the step's loss, and the (C,) token losses.

    `coefficients` as of token_coefficients, one per example of the step.
    """
    hidden_CH, target_C = predicting_hidden(lora, rows, packed, audio)
    coefficient_C = torch.tensor(coefficients, dtype=torch.float32)[packed.owner_C]
    return linear_cross_entropy(
        hidden_CH, lora.model.lm_head.weight, target_C, _to(coefficient_C, hidden_CH.device)
    )


@dataclass(frozen=True, slots=True)
class _CrossEntropyOfStep:
    """Each example's token losses are its sums."""

    rows: Sequence[TrainRow]
    coefficients: Sequence[float]
    weighting: Weighting

    @property
    def num_sums(self) -> int:
        return len(self.rows)

    def of_row(self, fit: Fit, packed: PackedRow) -> tuple[Tensor, Tensor]:
        part, nll_C = row_loss(
            fit.lora, self.rows, packed, audio=fit.audio, coefficients=self.coefficients
        )
        sums_N = torch.zeros(len(self.rows), dtype=torch.float64, device=nll_C.device)
        sums_N.index_add_(0, _to(packed.owner_C, nll_C.device), nll_C.to(sums_N.dtype))
        return part, sums_N

    def check(self, loss: float, sums: Sequence[float], *, step: int) -> dict[str, float]:
        _check_weights(loss, sums, self.rows, weighting=self.weighting, step=step)
        return {}


class CrossEntropy:
    """Plain fine-tuning: the weighted mean of the examples' losses."""

    uses_dropout = True
    name = ""

    def reference(self, fit: Fit, rows: Sequence[TrainRow]) -> dict[str, Tensor]:
        """Nothing need be known."""
        del fit, rows
        return {}

    def prepare(
        self, rows: Sequence[TrainRow], reference: Mapping[str, Tensor]
    ) -> tuple[list[TrainRow], dict[str, float]]:
        """The rows as they are."""
        del reference
        return list(rows), {}

    def of_step(self, fit: Fit, rows: Sequence[TrainRow]) -> StepLoss:
        """See Objective."""
        weighting = fit.recipe.weighting
        coefficients = token_coefficients(
            [row.weight for row in rows], [row.num_labels for row in rows], weighting
        )
        return _CrossEntropyOfStep(rows, coefficients, weighting)

    def stop_reason(self, metrics: Mapping[str, float]) -> str | None:
        """All steps are taken."""
        del metrics
        return None


CROSS_ENTROPY: Final[Objective] = CrossEntropy()


def learning_rate_at(step: int, num_steps: int, recipe: TrainRecipe) -> float:
    """Rate of step 0..num_steps-1: linear warm-up, then a cosine to zero or constant."""
    num_warmup = round(recipe.warmup_fraction * num_steps)
    if step < num_warmup:
        return recipe.learning_rate * (step + 1) / num_warmup
    if recipe.decay == "constant":
        return recipe.learning_rate
    done = (step - num_warmup) / max(1, num_steps - num_warmup)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def take_step(fit: Fit, rows: Sequence[TrainRow], *, step: int) -> StepResult:
    """Train on `rows`, the examples of optimizer step number `step`.

    Numbers come back from the GPU once, after the last backward was queued. Raises GateError when
    the loss is not finite, or not the weighted mean of the examples' losses.
    """
    recipe, factors = fit.recipe, fit.lora.factors()
    fit.optimizer.zero_grad(set_to_none=True)
    row_plan = list(pack(rows, recipe.token_budget))
    step_loss = fit.objective.of_step(fit, rows)
    sums = _sum_rows(fit, step_loss, row_plan, step=step)
    grads = [factor.grad for factor in factors.values() if factor.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    loss, grad_norm, *own = torch.cat((sums[:1], norm[None].to(sums), sums[1:])).tolist()
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        ids = ", ".join(sorted({row.question_id for row in rows})[:8])
        raise GateError(
            f"step {step}: loss {loss} and gradient norm {grad_norm} on questions {ids}: "
            "lower the learning rate or look at these examples"
        )
    metrics = step_loss.check(loss, own, step=step)
    if grad_norm > recipe.max_grad_norm:
        torch.nn.utils.clip_grads_with_norm_(factors.values(), recipe.max_grad_norm, norm)
    fit.optimizer.step()
    num_tokens = sum(sum(packed.lengths) for packed in row_plan)
    return StepResult(loss, grad_norm, num_tokens, metrics)


def _sum_rows(fit: Fit, step_loss: StepLoss, row_plan: Sequence[PackedRow], *, step: int) -> Tensor:
    """Forward and backward over this process's share of the rows, gradients summed over all.

    Returns the step's loss and its sums, (1 + num_sums,) fp64 on the device.
    """
    lora = fit.lora
    sums = torch.zeros(1 + step_loss.num_sums, dtype=torch.float64, device=lora.model.device)
    lora.dropout.active = fit.objective.uses_dropout
    for index, packed, is_last in share_rows(row_plan, fit.gradients):
        lora.dropout.start_row(step * _ROWS_PER_STEP + index)
        part, own = step_loss.of_row(fit, packed)
        sums[0] += part.detach()
        sums[1:] += own
        with fit.gradients.last_backward() if is_last else nullcontext():
            part.backward()  # type: ignore[no-untyped-call]
        del part, own  # with them would live, beside the next row, all nodes of this one's graph
    lora.dropout.active = False
    fit.gradients.finish(sums)
    return sums


def share_rows(
    row_plan: Sequence[PackedRow], gradients: GradientSum
) -> Iterator[tuple[int, PackedRow, bool]]:
    """This process's rows with their numbers, and whether each is its last; there may be none.

    Rows come fullest first, so dealing them out in turn keeps the shares even.
    """
    workers = gradients.workers
    mine = range(workers.rank, len(row_plan), workers.num)
    for index in mine:
        yield index, row_plan[index], index == mine[-1]


def _check_weights(
    loss: float, sums: Sequence[float], rows: Sequence[TrainRow], *, weighting: Weighting, step: int
) -> None:
    """Prove the loss from the `sums` of each example's token losses, without the coefficients."""
    counts = [row.num_labels for row in rows]
    means = [total / count for total, count in zip(sums, counts, strict=True)]
    by_tokens = weighting == "token"
    weights = [
        row.weight * (count if by_tokens else 1) for row, count in zip(rows, counts, strict=True)
    ]
    check_weighted_loss(loss, means, weights, step=step)
