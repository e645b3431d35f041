"""One optimizer step: forward and backward over packed rows, clipped, then the optimizer.

Not here: which examples a step takes (packing.py), resume and gates over a run (trainer.py).

Legend: S tokens of a row, A audio tokens of a clip, C completion tokens of a row, H hidden.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

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
    """Loss (nats, weighted by the recipe), gradient norm before clipping, tokens seen."""

    loss: float
    grad_norm: float
    num_tokens: int


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
    with packed_rows(model):
        out = model.model(
            inputs_embeds=row_embeds(lora, rows, packed, audio),
            position_ids=_to(packed.position_ids_41S, model.device),
            attention_mask=None,
            use_cache=False,
            row_layout=row_layout(packed.lengths, model.device),
        )
    hidden_SH: Tensor = out.last_hidden_state[0]
    return hidden_SH


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
    hidden_SH = row_hidden(lora, rows, packed, audio)
    device = hidden_SH.device
    coefficient_C = torch.tensor(coefficients, dtype=torch.float32)[packed.owner_C]
    return linear_cross_entropy(
        hidden_SH.index_select(0, _to(packed.predict_C, device)),
        lora.model.lm_head.weight,
        _to(packed.target_C, device),
        _to(coefficient_C, device),
    )


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
    sums = _sum_rows(fit, rows, row_plan, step=step)
    grads = [factor.grad for factor in factors.values() if factor.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    loss, grad_norm, *nll_N = torch.cat((sums[:1], norm[None].to(sums), sums[1:])).tolist()
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        ids = ", ".join(sorted({row.question_id for row in rows})[:8])
        raise GateError(
            f"step {step}: loss {loss} and gradient norm {grad_norm} on questions {ids}: "
            "lower the learning rate or look at these examples"
        )
    _check_weights(loss, nll_N, rows, weighting=recipe.weighting, step=step)
    if grad_norm > recipe.max_grad_norm:
        torch.nn.utils.clip_grads_with_norm_(factors.values(), recipe.max_grad_norm, norm)
    fit.optimizer.step()
    return StepResult(loss, grad_norm, sum(sum(packed.lengths) for packed in row_plan))


def _sum_rows(
    fit: Fit, rows: Sequence[TrainRow], row_plan: Sequence[PackedRow], *, step: int
) -> Tensor:
    """Forward and backward over this process's share of the rows, gradients summed over all.

    Returns the step's loss and each example's summed token losses, (1 + N,) fp64 on the device.
    """
    lora, recipe = fit.lora, fit.recipe
    coefficients = token_coefficients(
        [row.weight for row in rows], [row.num_labels for row in rows], recipe.weighting
    )
    sums = torch.zeros(1 + len(rows), dtype=torch.float64, device=lora.model.device)
    lora.dropout.active = True
    for index, packed, is_last in share_rows(row_plan, fit.gradients):
        lora.dropout.row = step * _ROWS_PER_STEP + index
        part, nll_C = row_loss(lora, rows, packed, audio=fit.audio, coefficients=coefficients)
        sums[0] += part.detach()
        sums.index_add_(0, _to(packed.owner_C + 1, sums.device), nll_C.to(sums.dtype))
        with fit.gradients.last_backward() if is_last else nullcontext():
            part.backward()  # type: ignore[no-untyped-call]
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
