"""Checks on one encoded example: each is a fault that once trained a model wrongly without a sound.

Not here: encoding itself (encode.py), audio tokens against the clip (audio.py), checks on a whole
training run (trainer.py, audit.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mmar_jobs.errors import GateError


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Ids of the tokens that the checks look for; of the tokenizer's own vocabulary."""

    think_open: int
    think_close: int
    turn_open: int
    turn_close: int
    audio: int


def check_weighted_loss(
    loss: float, losses: Sequence[float], weights: Sequence[float], *, step: int
) -> None:
    """The loss of a step is the mean of its examples' `losses` by `weights`, computed a second way.

    The earlier attempt computed a weight for every example and trained without it.
    """
    parts = zip(losses, weights, strict=True)
    expected = sum(weight * loss for loss, weight in parts) / sum(weights)
    if not math.isclose(loss, expected, rel_tol=1e-4, abs_tol=1e-6):
        raise GateError(
            f"step {step}: its loss {loss:.4g} is not the mean of its examples' losses by their "
            f"weights, {expected:.4g}: the weights are not honoured"
        )


def check_has_labels(num_labels: int, *, question_id: str) -> None:
    """At least one token is trained."""
    if num_labels < 1:
        raise GateError(f"question {question_id}: no token has a label: its completion is empty")


def check_labels_are_completion(
    prompt_ids: Sequence[int], unlabelled_ids: Sequence[int], *, question_id: str
) -> None:
    """Exactly the prompt has no label.

    Neither is a prompt token trained nor a completion token lost.
    """
    if list(unlabelled_ids) == list(prompt_ids):
        return
    num_missing = len(prompt_ids) - len(unlabelled_ids)
    if num_missing > 0:
        raise GateError(
            f"question {question_id}: {num_missing} prompt tokens are in the labels: only the "
            "completion may be trained"
        )
    raise GateError(
        f"question {question_id}: the tokens without a label are not the prompt "
        f"({len(unlabelled_ids)} tokens, the prompt has {len(prompt_ids)}): completion "
        "tokens would not be trained"
    )


def check_no_prompt_markers(
    label_ids: Sequence[int], tokens: TokenIds, *, question_id: str
) -> None:
    """Labels hold no audio token and no start of a turn: both occur in prompts only."""
    for name, token in (("audio", tokens.audio), ("start-of-turn", tokens.turn_open)):
        if token in label_ids:
            raise GateError(
                f"question {question_id}: the labels hold the {name} token: prompt tokens are "
                "trained, or the completion holds it itself"
            )


def check_think_tags(
    prompt_ids: Sequence[int], label_ids: Sequence[int], tokens: TokenIds, *, question_id: str
) -> None:
    """One closing tag in the labels, after one opening tag there or in the prompt's last turn.

    Chat templates drop the thinking of an assistant message with list content, so an example that
    was rendered as a whole conversation fails here.
    """
    num_closing = list(label_ids).count(tokens.think_close)
    if num_closing != 1:
        raise GateError(
            f"question {question_id}: {num_closing} </think> tokens in the labels, must be 1: "
            "the thinking is lost or the tags are not single tokens; append the completion verbatim"
        )
    last_turn = list(prompt_ids)[_after_last(prompt_ids, tokens.turn_open) :]
    before_close = list(label_ids)[: list(label_ids).index(tokens.think_close)]
    num_opening = (last_turn + before_close).count(tokens.think_open)
    if num_opening != 1 or tokens.think_open in list(label_ids)[len(before_close) :]:
        raise GateError(
            f"question {question_id}: {num_opening} <think> tokens before </think>, must be 1, "
            "in the completion or at the end of the prompt"
        )


def check_turn_closed(label_ids: Sequence[int], tokens: TokenIds, *, question_id: str) -> None:
    """The labels teach to stop: exactly one end-of-turn token, with at most a newline after it."""
    if list(label_ids).count(tokens.turn_close) != 1 or tokens.turn_close not in label_ids[-2:]:
        raise GateError(
            f"question {question_id}: the labels must end with one <|im_end|>: the model would "
            "not learn to stop, or the completion holds the token itself"
        )


def _after_last(ids: Sequence[int], token: int) -> int:
    """Index after the last `token`, 0 where there is none."""
    return len(ids) - list(ids)[::-1].index(token) if token in ids else 0
