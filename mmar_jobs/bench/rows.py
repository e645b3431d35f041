"""Random examples that fill one packed row to the last token.

Not here: packing (qlora/packing.py), any real text or sound.

Legend: A audio tokens of a clip, H hidden.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from mmar_jobs.errors import SettingsError
from mmar_jobs.qlora.packing import PolicyRow, TrainRow

# 10 to 30 s of sound at 13 tokens a second, prompt text, and what a thinking model answers.
_AUDIO_TOKENS: Final = (130, 390)
_TEXT_TOKENS: Final = 120
_COMPLETION_TOKENS: Final = (300, 1500)
_SMALLEST: Final = 8  # one token of sound, one of text, and a completion


@dataclass(frozen=True, slots=True)
class _Sizes:
    audio: int
    text: int
    completion: int

    @property
    def total(self) -> int:
        return self.audio + self.text + self.completion


def draw_rows(
    tokens: int,
    example_tokens: int | None,
    *,
    hidden: int,
    audio_token: int,
    seed: int,
) -> tuple[list[TrainRow], dict[str, Tensor]]:
    """Examples of `tokens` tokens together and their clips' (A, H) embeddings, on the CPU.

    Each has `example_tokens` tokens, or a drawn length: 130-390 of sound, 120 of text, 300-1,500 of
    completion. What is left for the last one decides its length.
    """
    if tokens < _SMALLEST or (example_tokens or _SMALLEST) < _SMALLEST:
        raise SettingsError(f"tokens and example tokens must be at least {_SMALLEST}")
    if example_tokens is not None and example_tokens > tokens:
        raise SettingsError(f"an example of {example_tokens} tokens is longer than {tokens} tokens")
    generator = torch.Generator().manual_seed(seed)
    rows, audio = [], {}
    for index, sizes in enumerate(_draw_sizes(tokens, example_tokens, random.Random(seed))):  # noqa: S311 - lengths
        num_prompt = sizes.audio + sizes.text
        ids = torch.randint(0, audio_token, (sizes.total,), generator=generator)
        ids[1 : 1 + sizes.audio] = audio_token
        name = f"{seed}-{index}"
        rows.append(TrainRow(f"q{name}", ids, num_prompt, 1.0, f"clip{name}"))
        audio[f"clip{name}"] = 0.02 * torch.randn(sizes.audio, hidden, generator=generator)
    return rows, audio


def as_candidates(rows: Sequence[TrainRow], vocabulary: int) -> list[PolicyRow]:
    """Rows as prepared candidates, right and wrong in turn, drawn by who knew nothing."""
    candidates = []
    for index, row in enumerate(rows):
        blind_C = torch.full((row.num_labels,), -math.log(vocabulary))
        candidates.append(
            PolicyRow(
                question_id=row.question_id,
                input_ids_S=row.input_ids_S,
                num_prompt_tokens=row.num_prompt_tokens,
                weight=0.0,
                audio_sha256=row.audio_sha256,
                advantage=-0.5 if index % 2 else 0.5,
                engine_C=blind_C,
                old_C=blind_C,
                scale=1 / row.num_labels,
            )
        )
    return candidates


def _draw_sizes(tokens: int, example_tokens: int | None, dice: random.Random) -> list[_Sizes]:
    found: list[_Sizes] = []
    left = tokens
    while left:
        sizes = _cut(example_tokens) if example_tokens else _draw_mixed(dice)
        if sizes.total > left - _SMALLEST:
            sizes = _cut(left)
        found.append(sizes)
        left -= sizes.total
    return found


def _draw_mixed(dice: random.Random) -> _Sizes:
    return _Sizes(dice.randint(*_AUDIO_TOKENS), _TEXT_TOKENS, dice.randint(*_COMPLETION_TOKENS))


def _cut(total: int) -> _Sizes:
    """Sizes of an example of `total` tokens, a quarter of it sound and an eighth text at most."""
    audio = min(_AUDIO_TOKENS[1], total // 4)
    text = min(_TEXT_TOKENS, total // 8)
    return _Sizes(audio, text, total - audio - text)
