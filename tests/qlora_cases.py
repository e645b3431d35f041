"""Small models, rows and adapters that the tests of the trainer share; built once per process."""

import atexit
import functools
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmar_jobs.qlora.load import load_thinker
from mmar_jobs.qlora.lora import LoraModel, attach_lora
from mmar_jobs.qlora.packing import PolicyRow, TrainRow
from mmar_jobs.qlora.policy import score
from mmar_jobs.qlora.recipes import LoraRecipe, TrainRecipe
from mmar_jobs.qlora.step import Fit
from mmar_jobs.tiny.model import save_random_model

NUM_AUDIO_TOKENS = 7
HIDDEN = 128
RECIPE = LoraRecipe(rank=3, alpha=6.0, dropout=0.0)
TRAIN = TrainRecipe(learning_rate=1e-2, examples_per_step=4, token_budget=96)


@functools.cache
def base_folder() -> Path:
    """A tiny random model in the original layout, 8 experts."""
    folder = Path(tempfile.mkdtemp(prefix="mmar-qlora-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    save_random_model(folder, seed=0)
    return folder


def thinker() -> Any:
    """A fresh fp32 thinker of `base_folder()`."""
    return load_thinker(base_folder(), dtype=torch.float32, device=torch.device("cpu"))


def adapted(recipe: LoraRecipe = RECIPE, *, seed: int = 0, fill: bool = True) -> LoraModel:
    """A thinker with LoRA; `fill` makes every B random, so that every factor has an effect."""
    lora = attach_lora(thinker(), recipe, seed=seed)
    if fill:
        fill_factors(lora, seed=seed + 1)
    return lora


def fill_factors(lora: LoraModel, *, seed: int) -> None:
    """Draw every factor from a normal distribution, large enough to move logits by tenths."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for factor in lora.factors().values():
            factor.copy_(0.3 * torch.randn(factor.shape, generator=generator))


def make_rows(
    lengths: Sequence[tuple[int, int]], *, seed: int = 0, weights: Sequence[float] | None = None
) -> tuple[list[TrainRow], dict[str, Tensor]]:
    """Rows of (prompt, completion) lengths with random tokens; embeddings of their clips."""
    generator = torch.Generator().manual_seed(seed)
    audio_token = thinker_audio_token()
    rows, audio = [], {}
    for index, (num_prompt, num_completion) in enumerate(lengths):
        ids = torch.randint(0, 200, (num_prompt + num_completion,), generator=generator)
        ids[1 : 1 + NUM_AUDIO_TOKENS] = audio_token
        weight = weights[index] if weights else 1.0
        rows.append(TrainRow(f"q{index}", ids, num_prompt, weight, f"clip{index}"))
        audio[f"clip{index}"] = torch.randn(NUM_AUDIO_TOKENS, HIDDEN, generator=generator)
    return rows, audio


def as_candidates(
    lora: LoraModel, rows: Sequence[TrainRow], audio: Mapping[str, Tensor], *, noise: float = 0.01
) -> list[PolicyRow]:
    """Rows as candidates, a right one in four, whose engine was `lora` but for its rounding."""
    candidates = [
        PolicyRow(
            question_id=row.question_id,
            input_ids_S=row.input_ids_S,
            num_prompt_tokens=row.num_prompt_tokens,
            weight=row.weight,
            audio_sha256=row.audio_sha256,
            advantage=-0.25 if index % 4 else 0.75,
            engine_C=torch.zeros(row.num_labels),
        )
        for index, row in enumerate(rows)
    ]
    own = score(fit_of(lora, audio), candidates)
    generator = torch.Generator().manual_seed(5)
    return [
        replace(row, engine_C=part + noise * torch.randn(len(part), generator=generator))
        for row, part in zip(candidates, own, strict=True)
    ]


def fit_of(lora: LoraModel, audio: Mapping[str, Tensor], *, token_budget: int = 64) -> Fit:
    """What scoring needs; its optimizer is never stepped."""
    idle = torch.optim.SGD(lora.factors().values(), lr=0.0)
    return Fit(lora, replace(TRAIN, token_budget=token_budget), audio, idle)


@functools.cache
def thinker_audio_token() -> int:
    """Id of the audio token in the tiny model's vocabulary."""
    return int(thinker().config.audio_token_id)


def separate_logits(model: Any, row: TrainRow, audio: Mapping[str, Tensor]) -> Tensor:
    """(S, V) logits of one example alone, through transformers' own forward."""
    embeds_SH = model.get_input_embeddings()(row.input_ids_S)
    embeds_SH[row.input_ids_S == model.config.audio_token_id] = audio[row.audio_sha256]
    with torch.no_grad():
        out = model(inputs_embeds=embeds_SH[None], use_cache=False)
    logits: Tensor = out.logits[0]
    return logits
