"""Token ids as pieces of text that a person can read; special tokens stay visible.

Not here: colours (terminal.py, page.py).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

Kind = Literal["text", "special", "audio"]
_MAX_BYTES = 4  # of one character in UTF-8


@dataclass(frozen=True, slots=True)
class Piece:
    """One token, or the few that make up one character, or a run of audio tokens.

    `probability` is that of its tokens given all before, None where nothing was drawn.
    """

    text: str
    token_ids: tuple[int, ...]
    kind: Kind = "text"
    is_label: bool = False
    probability: float | None = None


def pieces_of(
    processor: Any, token_ids: Sequence[int], logprobs: Sequence[float] | None = None
) -> list[Piece]:
    """Cut `token_ids` into pieces, in order; every id is in exactly one piece."""
    special = set(processor.tokenizer.get_added_vocab().values())
    audio_id = processor.tokenizer.convert_tokens_to_ids(processor.audio_token)
    found: list[Piece] = []
    start = 0
    for kind, run in groupby(
        token_ids,
        key=lambda token: "audio" if token == audio_id else "special" if token in special else "",
    ):
        ids = list(run)
        told = None if logprobs is None else logprobs[start : start + len(ids)]
        start += len(ids)
        if kind == "audio":
            found.append(Piece(processor.audio_token, tuple(ids), "audio"))
        else:
            found += _cut(processor.tokenizer, ids, told, is_special=kind == "special")
    return found


def _cut(
    tokenizer: Any, ids: Sequence[int], logprobs: Sequence[float] | None, *, is_special: bool
) -> Iterator[Piece]:
    """One piece a token, but where a character is spread over several."""
    held: list[int] = []
    for place, token in enumerate(ids):
        held.append(token)
        text = tokenizer.decode(held, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        is_last = place + 1 == len(ids)
        if text.endswith("\ufffd") and len(held) < _MAX_BYTES and not is_last:
            continue
        first = place + 1 - len(held)
        probability = None if logprobs is None else math.exp(sum(logprobs[first : place + 1]))
        kind: Kind = "special" if is_special else "text"
        yield Piece(text, tuple(held), kind, probability=probability)
        held = []


def labelled(pieces: Sequence[Piece]) -> list[Piece]:
    """The same pieces as ones that the loss counts."""
    return [replace(piece, is_label=True) for piece in pieces]


def least_likely(pieces: Sequence[Piece], count: int) -> list[Piece]:
    """Where the model hesitated: up to `count` pieces below one half, the least likely first."""
    drawn = [piece for piece in pieces if piece.probability is not None and piece.probability < 0.5]
    return sorted(drawn, key=lambda piece: piece.probability or 0.0)[:count]
