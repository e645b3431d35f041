"""One optimizer step: forward and backward over packed rows, clipped, then the optimizer.

Not here: which examples a step takes (packing.py), resume and gates over a run (trainer.py).

Legend: S tokens of a row, A audio tokens of a clip, C completion tokens of a row, H hidden.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmar_jobs.errors import GateError, SettingsError
from mmar_jobs.qlora.attention import packed_rows
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


def row_embeds(
    lora: LoraModel, rows: Sequence[TrainRow], packed: PackedRow, audio: Mapping[str, Tensor]
) -> Tensor:
    """Input embeddings of a row, (1, S, H), with the clips' in place of audio tokens."""
    model = lora.model
    device = model.model.embed_tokens.weight.device
    input_ids_S = packed.input_ids_S.to(device)
    embeds_SH: Tensor = model.model.embed_tokens(input_ids_S)
    is_audio_S = input_ids_S == model.config.audio_token_id
    clips = [audio[rows[member].audio_sha256] for member in packed.members]
    audio_AH = torch.cat(clips).to(device, embeds_SH.dtype)
    if audio_AH.shape[0] != int(is_audio_S.sum()):
        ids = ", ".join(rows[member].question_id for member in packed.members)
        raise GateError(
            f"questions {ids}: {int(is_audio_S.sum())} audio tokens in their rows but "
            f"{audio_AH.shape[0]} embeddings: clips and prompts do not belong together"
        )
    embeds_SH[is_audio_S] = audio_AH
    return embeds_SH[None]


def row_hidden(
    lora: LoraModel, rows: Sequence[TrainRow], packed: PackedRow, audio: Mapping[str, Tensor]
) -> Tensor:
    """Final hidden states of a row, (S, H); no example sees another one."""
    model = lora.model
    with packed_rows(model):
        out = model.model(
            inputs_embeds=row_embeds(lora, rows, packed, audio),
            position_ids=packed.position_ids_41S.to(model.device),
            attention_mask=None,
            use_cache=False,
            row_lengths=packed.lengths,
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
    coefficient_C = torch.tensor(coefficients, dtype=torch.float32)[packed.owner_C].to(device)
    return linear_cross_entropy(
        hidden_SH.index_select(0, packed.predict_C.to(device)),
        lora.model.lm_head.weight,
        packed.target_C.to(device),
        coefficient_C,
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


def build_optimizer(
    factors: Iterable[torch.nn.Parameter], recipe: TrainRecipe
) -> torch.optim.Optimizer:
    """AdamW over the factors; "adamw8bit" without bitsandbytes is a SettingsError."""
    options = {
        "lr": recipe.learning_rate,
        "betas": recipe.betas,
        "weight_decay": recipe.weight_decay,
    }
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(factors, fused=True, **options)  # type: ignore[arg-type]
    try:
        from bitsandbytes.optim import PagedAdamW8bit  # type: ignore[import-not-found]  # noqa: PLC0415
    except ImportError as error:
        raise SettingsError(
            "optimizer adamw8bit needs bitsandbytes, which is not installed: choose adamw"
        ) from error
    optimizer: torch.optim.Optimizer = PagedAdamW8bit(list(factors), **options)
    return optimizer


def take_step(
    lora: LoraModel,
    rows: Sequence[TrainRow],
    recipe: TrainRecipe,
    *,
    audio: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    step: int,
) -> StepResult:
    """Train on `rows`, the examples of optimizer step number `step`.

    Raises GateError when the loss is not finite, or not the weighted mean of the examples' losses.
    """
    coefficients = token_coefficients(
        [row.weight for row in rows], [row.num_labels for row in rows], recipe.weighting
    )
    optimizer.zero_grad(set_to_none=True)
    lora.dropout.active = True
    loss, num_tokens = 0.0, 0
    nll_N = torch.zeros(len(rows))
    for index, packed in enumerate(pack(rows, recipe.token_budget)):
        lora.dropout.row = step * _ROWS_PER_STEP + index
        part, nll_C = row_loss(lora, rows, packed, audio=audio, coefficients=coefficients)
        nll_N.index_add_(0, packed.owner_C, nll_C.float().cpu())
        part.backward()  # type: ignore[no-untyped-call]
        loss += float(part.detach())
        num_tokens += sum(packed.lengths)
    lora.dropout.active = False
    norm = torch.nn.utils.clip_grad_norm_(lora.factors().values(), recipe.max_grad_norm)
    if not (math.isfinite(loss) and math.isfinite(float(norm))):
        ids = ", ".join(sorted({row.question_id for row in rows})[:8])
        raise GateError(
            f"step {step}: loss {loss} and gradient norm {float(norm)} on questions {ids}: "
            "lower the learning rate or look at these examples"
        )
    _check_weights(loss, nll_N.tolist(), rows, weighting=recipe.weighting, step=step)
    optimizer.step()
    return StepResult(loss, float(norm), num_tokens)


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
