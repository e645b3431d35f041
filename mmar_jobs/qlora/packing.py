"""Packing a step's examples into rows of at most the token budget.

Not here: encoding (encode.py), the forward pass over a row (step.py). Examples are never cut: one
that is longer than a row is dropped and counted.

Legend: S tokens of a row (or of one example), C completion tokens of a row.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TrainRow:
    """One encoded example.

    `input_ids_S` is prompt then completion; the first `num_prompt_tokens` of it have no label.
    `audio_sha256` names the clip whose embeddings stand in for the audio tokens.
    """

    question_id: str
    input_ids_S: Tensor
    num_prompt_tokens: int
    weight: float
    audio_sha256: str

    @property
    def num_tokens(self) -> int:
        """Prompt and completion."""
        return self.input_ids_S.numel()

    @property
    def num_labels(self) -> int:
        """Completion tokens, each of which is predicted once."""
        return self.num_tokens - self.num_prompt_tokens

    def facts(self) -> tuple[object, ...]:
        """What training reads of it beside the tokens."""
        return (self.question_id, self.num_prompt_tokens, self.weight, self.audio_sha256)


@dataclass(frozen=True, slots=True)
class PolicyRow(TrainRow):
    """One candidate as a policy gradient learns it; `weight` is that of a cross-entropy beside it.

    `engine_C` are the log-probabilities that it was drawn at, nats. Before the first step the
    trainer adds its own (`old_C`), those of the base where they are needed (`base_C`), and the
    `scale` of each of its tokens in the loss.
    """

    advantage: float
    engine_C: Tensor
    old_C: Tensor | None = None
    base_C: Tensor | None = None
    scale: float = 0.0

    def facts(self) -> tuple[object, ...]:
        """See TrainRow; what the trainer adds follows from these."""
        engine = hashlib.sha256(self.engine_C.numpy().tobytes()).hexdigest()
        # super() knows the class as it was before slots=True made it anew.
        return (*TrainRow.facts(self), self.advantage, engine)


@dataclass(frozen=True, slots=True)
class PackedRow:
    """Several examples end to end. `members` indexes the step's examples in row order.

    `position_ids_4_1_S`: four equal rows that restart at each example (text, then mrope's time,
    height, width, which are the same for text and audio). `predict_C` is where the hidden states
    stand that predict `target_C`; `owner_C` indexes the step's examples.
    """

    members: tuple[int, ...]
    lengths: list[int]
    input_ids_S: Tensor
    position_ids_41S: Tensor
    predict_C: Tensor
    target_C: Tensor
    owner_C: Tensor


def split_over_long(rows: Sequence[TrainRow], token_budget: int) -> tuple[list[TrainRow], int]:
    """Keep the examples that fit into a row; return them and the number dropped."""
    kept = [row for row in rows if row.num_tokens <= token_budget]
    return kept, len(rows) - len(kept)


def digest_rows(rows: Sequence[TrainRow]) -> str:
    """SHA-256 over everything in the rows that training reads."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr((row.facts(), row.input_ids_S.tolist())).encode())
    return digest.hexdigest()


def schedule_steps(
    num_rows: int, *, examples_per_step: int, num_epochs: int, seed: int
) -> list[list[int]]:
    """Which examples each optimizer step takes.

    An epoch is a permutation of its own, drawn from `seed`.

    The last step of an epoch may be smaller; every example is seen exactly once per epoch.
    """
    steps = []
    for epoch in range(num_epochs):
        order = list(range(num_rows))
        random.Random(f"{seed}-{epoch}").shuffle(order)  # noqa: S311 - an order, not a secret
        steps += [
            order[start : start + examples_per_step]
            for start in range(0, num_rows, examples_per_step)
        ]
    return steps


def _bins(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """First fit, longest first: at most 11/9 of the fewest rows (Johnson 1973)."""
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        fits = (at for at, free in enumerate(room) if free >= lengths[index])
        at = next(fits, len(bins))
        if at == len(bins):
            bins.append([])
            room.append(token_budget)
        bins[at].append(index)
        room[at] -= lengths[index]
    return bins


def pack(rows: Sequence[TrainRow], token_budget: int) -> Iterator[PackedRow]:
    """Pack one step's examples; each must fit the budget (split_over_long)."""
    for members in _bins([row.num_tokens for row in rows], token_budget):
        yield pack_row(rows, members)


def pack_row(rows: Sequence[TrainRow], members: Sequence[int]) -> PackedRow:
    """Lay `members` end to end.

    The first token of an example is never predicted by its neighbour: a completion starts after a
    prompt of at least one token.
    """
    lengths = [rows[member].num_tokens for member in members]
    positions_S = torch.cat([torch.arange(length) for length in lengths])
    predict, target, owner, start = [], [], [], 0
    for member in members:
        row = rows[member]
        assert row.num_prompt_tokens > 0, "a completion needs a token that predicts its first one"
        labels = torch.arange(row.num_prompt_tokens, row.num_tokens)
        predict.append(start + labels - 1)
        target.append(row.input_ids_S[labels])
        owner.append(torch.full_like(labels, member))
        start += row.num_tokens
    return PackedRow(
        members=tuple(members),
        lengths=lengths,
        input_ids_S=torch.cat([rows[member].input_ids_S for member in members]),
        position_ids_41S=positions_S.expand(4, 1, -1).contiguous(),
        predict_C=torch.cat(predict),
        target_C=torch.cat(target),
        owner_C=torch.cat(owner),
    )
