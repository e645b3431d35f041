"""Data parallel training: who takes which packed row, and gradients summed over all processes.

Every process holds the whole base and all factors; only gradients travel. Not here: starting the
processes (launch.py, or torchrun), a step (step.py). Gradients need no division: the coefficients
of the loss are those of the whole step (loss.py).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmar_jobs.errors import GateError, TryAgain

T = TypeVar("T")

# What follows a slow first process, for example one that reads its base from a cold disk.
TIMEOUT_S: Final = 1800.0


@dataclass(frozen=True, slots=True)
class Workers:
    """The processes of one training run, of which this is number `rank`, from 0."""

    rank: int = 0
    num: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes checkpoints, exports and logs."""
        return self.rank == 0

    def share(self, value: T) -> T:
        """The first process's value, on all; small and picklable. Every process must call it."""
        if self.num == 1:
            return value
        box: list[Any] = [value]
        with explained():
            dist.broadcast_object_list(box, src=0)
        shared: T = box[0]
        return shared

    def gather(self, value: T) -> list[T]:
        """Every process's value, in order of rank, on all. Every process must call it."""
        if self.num == 1:
            return [value]
        found: list[Any] = [None] * self.num
        with explained():
            dist.all_gather_object(found, value)
        return found

    def check_equal(self, value: str, what: str) -> None:
        """GateError unless all processes have the same `value`."""
        values = self.gather(value)
        if len(set(values)) > 1:
            odd = next(rank for rank, other in enumerate(values) if other != values[0])
            raise GateError(f"process {odd} of {self.num} has other {what} than process 0")


ALONE: Final = Workers()


@contextmanager
def join_workers(
    rank: int, num: int, device: torch.device, *, timeout_s: float = TIMEOUT_S
) -> Iterator[Workers]:
    """Meet the other processes at MASTER_ADDR and MASTER_PORT, as torchrun sets them.

    A process that is gone, or silent for `timeout_s` seconds, is a TryAgain in the others' next
    exchange. Small objects go over gloo, gradients on a GPU over NCCL.
    """
    if num == 1:
        yield ALONE
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with explained():
        dist.init_process_group(
            backend, rank=rank, world_size=num, timeout=timedelta(seconds=timeout_s)
        )
    try:
        yield Workers(rank, num)
    finally:
        dist.destroy_process_group()


@contextmanager
def explained() -> Iterator[None]:
    """Turn what torch raises when another process is gone into a TryAgain."""
    try:
        yield
    except RuntimeError as error:  # gloo's and NCCL's errors have no narrower type in common
        if torch.cuda.is_available() and isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise TryAgain(
            f"another process of this training is gone or silent ({reason}): run the same command "
            "again, it goes on from the last checkpoint"
        ) from error


class GradientSum:
    """Sums the factors' gradients over all processes while the last backward still runs.

    All processes exchange tensors in one order, last factor first, which is roughly the order in
    which a backward finishes them. A process without a row in a step takes part with zeros.
    """

    def __init__(self, factors: Mapping[str, nn.Parameter], workers: Workers) -> None:
        self.workers = workers
        self._factors = list(factors.values())[::-1]
        self._ready: set[int] = set()
        self._num_sent = 0
        self._pending: list[dist.Work] = []
        self._is_last = False
        self._hooks = [
            factor.register_post_accumulate_grad_hook(self._note)  # type: ignore[no-untyped-call]
            for factor in self._factors
            if workers.num > 1
        ]

    def close(self) -> None:
        """Take the hooks off the factors."""
        for hook in self._hooks:
            hook.remove()

    @contextmanager
    def last_backward(self) -> Iterator[None]:
        """Around the backward after which this process adds nothing more to any gradient."""
        self._is_last = True
        try:
            yield
        finally:
            self._is_last = False

    def finish(self, *others: Tensor) -> None:
        """Sum what no backward has sent yet, then `others` in place; returns when all is queued."""
        if self.workers.num == 1:
            return
        with explained():
            for factor in self._factors[self._num_sent :]:
                self._send_gradient(factor)
            for other in others:
                self._send(other)
            for work in self._pending:
                work.wait()
        self._pending.clear()
        self._ready.clear()
        self._num_sent = 0

    def _note(self, factor: Tensor) -> None:
        if not self._is_last:
            return
        self._ready.add(id(factor))
        with explained():
            while (
                self._num_sent < len(self._factors)
                and id(self._factors[self._num_sent]) in self._ready
            ):
                self._send_gradient(self._factors[self._num_sent])
                self._num_sent += 1

    def _send_gradient(self, factor: nn.Parameter) -> None:
        grad = torch.zeros_like(factor) if factor.grad is None else factor.grad.contiguous()
        factor.grad = grad
        self._send(grad)

    def _send(self, tensor: Tensor) -> None:
        work = dist.all_reduce(tensor, async_op=True)
        assert work is not None, "an asynchronous call returns its handle"
        self._pending.append(work)
