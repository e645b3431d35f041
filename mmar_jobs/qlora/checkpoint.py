"""Resumable training state: factors, optimizer, reference, history; made durable in a thread.

Not here: where it is kept (the caller gives a `Checkpoints`). There is no random state to keep:
order and dropout are functions of the seed and the step. The state is a safetensors file, which is
written tensor by tensor: on the 30B model it has 20 GB.
"""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmar_jobs.errors import DataError, SettingsError
from mmar_jobs.qlora.lora import LoraModel
from mmar_jobs.qlora.optimizer import optimizer_state, restore_optimizer

_FACTOR: Final = "factor."
_MOMENTS: Final = "optimizer."
_REFERENCE: Final = "reference."
_METADATA: Final = "mmar_checkpoint"
_DTYPES: Final = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
    torch.int64: "I64",
}


class Checkpoints(Protocol):
    """Where checkpoints live; `save` is called from a thread, one call at a time."""

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, None when there is none."""
        ...

    def load(self, step: int) -> AbstractContextManager[Path]:
        """A local file with the checkpoint of `step`, proven to be what was saved."""
        ...

    def save(self, step: int, parts: Iterator[memoryview]) -> None:
        """Keep `parts` end to end as the state after `step` steps; returns when that is durable."""
        ...


@dataclass(slots=True)
class Progress:
    """History of a training run: steps done, their losses, gradient norms, tokens and metrics."""

    num_steps: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)


class Snapshot:
    """A copy of the training state in host memory, whose buffers serve every checkpoint anew.

    On a GPU the copies are queued behind the step's kernels, so training goes on at once.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._header = b""
        self._copied: torch.cuda.Event | None = None

    @torch.no_grad()
    def take(
        self,
        lora: LoraModel,
        optimizer: torch.optim.Optimizer,
        progress: Progress,
        *,
        reference: Mapping[str, Tensor],
        fingerprint: str,
    ) -> None:
        """Copy the state; an earlier copy must not be read any more.

        `reference` is on the host and constant (see Objective): it is not copied.
        """
        factors = lora.factors()
        moments, numbers = optimizer_state(optimizer, factors)
        tensors = {f"{_FACTOR}{name}": factor.detach() for name, factor in factors.items()}
        tensors |= {f"{_MOMENTS}{name}": value for name, value in moments.items()}
        for name, tensor in tensors.items():
            if name not in self._buffers:
                self._buffers[name] = torch.empty(
                    tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda
                )
            self._buffers[name].copy_(tensor, non_blocking=True)
        self._buffers |= {f"{_REFERENCE}{name}": value for name, value in reference.items()}
        if any(tensor.is_cuda for tensor in tensors.values()):
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
        facts = {"fingerprint": fingerprint, "progress": asdict(progress), "numbers": numbers}
        self._header = _render_header(self._buffers, facts)

    def parts(self) -> Iterator[memoryview]:
        """The bytes of the checkpoint's file, tensor by tensor and without a further copy."""
        if self._copied is not None:
            self._copied.synchronize()
        yield memoryview(self._header)
        for buffer in self._buffers.values():
            yield buffer.flatten().view(torch.uint8).numpy().data


def _render_header(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    """Header of a safetensors file of these tensors, in this order."""
    content: dict[str, Any] = {"__metadata__": {_METADATA: json.dumps(facts)}}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.nbytes
        content[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class CheckpointWriter:
    """Saves one checkpoint at a time in a thread of its own."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._snapshot = Snapshot()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.step: int | None = None

    def start(
        self,
        lora: LoraModel,
        optimizer: torch.optim.Optimizer,
        progress: Progress,
        *,
        reference: Mapping[str, Tensor],
        fingerprint: str,
    ) -> None:
        """Copy the state and begin to save it; waits for the checkpoint before it."""
        self.wait()
        self._snapshot.take(lora, optimizer, progress, reference=reference, fingerprint=fingerprint)
        self.step = progress.num_steps
        self._thread = threading.Thread(target=self._save, args=(self.step,), name="checkpoint")
        self._thread.start()

    def check(self) -> None:
        """Raise what the thread ended with, if it did."""
        if self._thread is None or not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Return when the checkpoint that was begun is durable; raises what prevented that."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error, self.step = self._error, None, None
            raise error

    def close(self) -> None:
        """Let a checkpoint that was begun become durable, whatever else went wrong meanwhile."""
        if self._thread is not None:
            self._thread.join()

    def _save(self, step: int) -> None:
        try:
            self._checkpoints.save(step, self._snapshot.parts())
        except BaseException as error:  # raised again where the trainer meets it
            self._error = error


class _Part(Mapping[str, Tensor]):
    """The tensors of an open file whose names begin with `prefix`, read when asked for."""

    def __init__(self, file: Any, prefix: str) -> None:
        self._file, self._prefix = file, prefix
        self._names = {name for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        if f"{self._prefix}{name}" not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._file.get_tensor(f"{self._prefix}{name}")
        return tensor

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self._prefix) for name in self._names)

    def __len__(self) -> int:
        return len(self._names)


@torch.no_grad()
def restore_state(
    path: Path, lora: LoraModel, optimizer: torch.optim.Optimizer, *, fingerprint: str
) -> tuple[Progress, dict[str, Tensor]]:
    """Put a checkpoint back, bit for bit, one tensor at a time; returns history and reference.

    SettingsError when it is of another recipe, DataError when it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()[_METADATA])
            _check_fingerprint(facts["fingerprint"], fingerprint)
            factors = lora.factors()
            saved = _Part(file, _FACTOR)
            for name, factor in factors.items():
                factor.copy_(saved[name])
            restore_optimizer(optimizer, factors, _Part(file, _MOMENTS), facts["numbers"])
            return Progress(**facts["progress"]), dict(_Part(file, _REFERENCE))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"the training checkpoint of {path.stat().st_size} bytes is damaged: delete it to "
            "start over"
        ) from error


def _check_fingerprint(found: str, expected: str) -> None:
    if found != expected:
        raise SettingsError(
            f"the training checkpoint is of another recipe, data, base or parent ({found[:12]}, "
            f"now {expected[:12]}): use a new run id or the settings it was made with"
        )
