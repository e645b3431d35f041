"""The training bench's figures: what was timed at one row size, under stable names.

Not here: timing (train.py), what a figure carries (result.py).
"""

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from torch import Tensor

from mmar_jobs.bench.flops import peak_bf16_flops
from mmar_jobs.bench.profile import Shares
from mmar_jobs.bench.result import Direction, Environment, Measurement, Scalar
from mmar_jobs.bench.shape import SHAPES, with_layers
from mmar_jobs.qlora.memory import MemoryPlan, ModelShape, Quantization
from mmar_jobs.qlora.recipes import Optimizer

_GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class TrainBench:
    """What to measure. `tokens` are row sizes, measured one after the other on one model.

    `rows` packed rows make a step; they are dealt out to `processes`, each with a GPU of its own.
    """

    shape: Literal["30b", "tiny"] = "30b"
    num_layers: int | None = None
    tokens: tuple[int, ...] = (8192,)
    example_tokens: int | None = None
    rank: int = 64
    dropout: float = 0.05
    quantization: Quantization = "nf4"
    optimizer: Optimizer = "adamw8bit"
    memory_gb: float = 80.0
    num_steps: int = 5
    num_warmup: int = 2
    seed: int = 0
    learning_rate: float = 1e-3
    compare: Literal["peft"] | None = None
    rows: int = 1
    processes: int = 1
    objective: Literal["rest", "grpo"] = "rest"

    @property
    def memory_bytes(self) -> int:
        """The budget in bytes."""
        return round(self.memory_gb * 10**9)

    @property
    def model_shape(self) -> ModelShape:
        """The shape that is built, cut to `num_layers` where that is given."""
        return with_layers(SHAPES[self.shape], self.num_layers)


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes of a CUDA device: torch's peak, and what is there beside torch's allocator.

    That is the context, loaded kernels, an optimizer's paged state, and other processes. The peak
    is what torch reserved: it does not know what of that the kernels of a CUDA graph use.
    """

    reserved: int
    beside: int

    @property
    def peak(self) -> int:
        """Bytes of the device that were in use at most."""
        return self.reserved + self.beside


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of each timed step, the loss of every step in nats, memory where it was read."""

    seconds: tuple[float, ...]
    losses: tuple[float, ...]
    memory: MemoryUse | None


class Figures:
    """Turns what was timed at one row size into measurements with stable names."""

    def __init__(
        self, bench: TrainBench, environment: Environment, tokens: int, *, path: str
    ) -> None:
        self.environment, self.tokens, self.path = environment, tokens, path
        self.speed = 0.0
        self.step_tokens, self.processes = tokens * bench.rows, bench.processes
        self.case: dict[str, Scalar] = {
            "shape": bench.shape,
            "num_layers": bench.model_shape.num_layers,
            "tokens": tokens,
            "rows": bench.rows,
            "processes": bench.processes,
            "example_tokens": bench.example_tokens,
            "rank": bench.rank,
            "dropout": bench.dropout if path == "mmar" else 0.0,
            "quantization": bench.quantization if path == "mmar" else "none",
            "optimizer": bench.optimizer,
            "memory_gb": bench.memory_gb if path == "mmar" else None,
            "seed": bench.seed,
        }
        if bench.objective != "rest" and path == "mmar":
            self.case["objective"] = bench.objective

    def one(
        self,
        name: str,
        unit: str,
        direction: Direction,
        values: Sequence[float],
        **detail: object,
    ) -> Measurement:
        """One measurement of this row size; its name says whose path it is."""
        prefix = "train" if self.path == "mmar" else f"train/{self.path}"
        return Measurement(
            name=f"{prefix}/{name}",
            unit=unit,
            direction=direction,
            values=tuple(values),
            case=self.case,
            environment=self.environment,
            detail=detail,
        )

    def of_steps(self, timed: Timed, factors: Iterable[Tensor]) -> Iterator[Measurement]:
        """Speed with the number of trained numbers, step time, loss, and on CUDA the peak."""
        self.speed = self.step_tokens / statistics.median(timed.seconds)
        speeds = [self.step_tokens / seconds for seconds in timed.seconds]
        num_trained = sum(factor.numel() for factor in factors)
        yield self.one("tokens_per_s", "tokens/s", "higher", speeds, num_trained=num_trained)
        yield self.one("step_seconds", "s", "lower", timed.seconds)
        yield self.one("loss", "nats", "none", timed.losses)
        if timed.memory:
            yield self.one(
                "peak_memory_gib",
                "GiB",
                "lower",
                (timed.memory.peak / _GIB,),
                reserved_gib=timed.memory.reserved / _GIB,
                beside_gib=timed.memory.beside / _GIB,
            )

    def of_memory(self, timed: Timed, plan: MemoryPlan) -> Iterator[Measurement]:
        """What the memory model predicted; `layers` counts them by what they keep."""
        layers = {
            f"gate_up={saved.gate_up}, attention={saved.attention}": count
            for saved, count in Counter(plan.saved).items()
        }
        parts = {part: num / _GIB for part, num in plan.parts.items()}
        predicted = plan.peak_bytes / _GIB
        yield self.one(
            "predicted_peak_memory_gib",
            "GiB",
            "none",
            (predicted,),
            parts_gib=parts,
            layers=layers,
            measured_gib=timed.memory.peak / _GIB if timed.memory else None,
        )

    def of_flops(self, timed: Timed, flops: float) -> Iterator[Measurement]:
        """Model FLOPs utilisation (flops.py), where the device's peak is known."""
        peak = peak_bf16_flops(self.environment.device)
        if peak is not None:
            peak *= self.processes
            shares = [flops / seconds / peak for seconds in timed.seconds]
            yield self.one("mfu", "share", "higher", shares, step_flops=flops, peak_flops=peak)

    def of_parts(self, parts: Iterator[tuple[float, float, float]]) -> Iterator[Measurement]:
        """Forward, backward, optimizer: timed apart, so their sum is a little over a step."""
        for name, seconds in zip(
            ("forward", "backward", "optimizer"), zip(*parts, strict=True), strict=True
        ):
            yield self.one(f"{name}_seconds", "s", "lower", seconds)

    def of_profile(self, shares: Shares) -> Iterator[Measurement]:
        """Share of a step by class of kernel."""
        for kind, share in shares.shares.items():
            longest = shares.top.get(kind, [])
            yield self.one(
                f"kernel_share/{kind}",
                "share",
                "lower" if kind == "gaps" else "none",
                (share,),
                busy_seconds=shares.busy_s,
                longest=longest,
            )
