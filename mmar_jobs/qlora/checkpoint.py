"""Resumable training state as bytes: factors, optimizer, history and the number of steps done.

Not here: where the bytes are kept (the caller gives a `Checkpoints`). There is no random state to
keep: order and dropout are functions of the seed and the step.
"""

import io
import pickle
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from mmar_jobs.errors import DataError, SettingsError
from mmar_jobs.qlora.lora import LoraModel


class Checkpoints(Protocol):
    """Where checkpoints live.

    `save` returns once the bytes are durable; `latest` is the last of them.
    """

    def latest(self) -> bytes | None:
        """Bytes of the newest complete checkpoint, None when there is none."""
        ...

    def save(self, step: int, data: bytes) -> None:
        """Keep `data`, the state after `step` optimizer steps."""
        ...


@dataclass(slots=True)
class Progress:
    """History of a training run: steps done, their losses, gradient norms and tokens."""

    num_steps: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)


def dump_state(
    lora: LoraModel, optimizer: torch.optim.Optimizer, progress: Progress, *, fingerprint: str
) -> bytes:
    """Serialise the state after a step; read back by `restore_state`."""
    state: dict[str, Any] = {
        "fingerprint": fingerprint,
        "factors": {name: factor.detach().cpu() for name, factor in lora.factors().items()},
        "optimizer": optimizer.state_dict(),
        "progress": {name: getattr(progress, name) for name in Progress.__slots__},
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def restore_state(
    data: bytes, lora: LoraModel, optimizer: torch.optim.Optimizer, *, fingerprint: str
) -> Progress:
    """Put a checkpoint back.

    SettingsError when it is of another recipe, DataError when it is damaged.
    """
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        found = state["fingerprint"]
    except (
        RuntimeError,
        EOFError,
        pickle.UnpicklingError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:
        raise DataError(
            f"the training checkpoint of {len(data)} bytes is damaged: delete it to start over"
        ) from error
    if found != fingerprint:
        raise SettingsError(
            f"the training checkpoint is of another recipe, data or parent ({found[:12]}, now "
            f"{fingerprint[:12]}): use a new run id or the settings it was made with"
        )
    with torch.no_grad():
        for name, factor in lora.factors().items():
            factor.copy_(state["factors"][name])
    optimizer.load_state_dict(state["optimizer"])
    return Progress(**state["progress"])
