"""The training bench: tokens/s, memory and kernel shares of the trainer's own step, random weights.

Not here: the step itself (qlora/step.py), flags (command.py), the stock path (stock.py). Every
token counted is a real one: the rows have no padding.
"""

import functools
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from mmar_jobs.bench.figures import Figures, MemoryUse, Timed, TrainBench
from mmar_jobs.bench.flops import step_flops
from mmar_jobs.bench.profile import profile_step
from mmar_jobs.bench.result import Environment, Measurement
from mmar_jobs.bench.rows import as_candidates, draw_rows
from mmar_jobs.bench.shape import build_thinker
from mmar_jobs.bench.stock import StockTrainer
from mmar_jobs.errors import SettingsError
from mmar_jobs.qlora.distributed import ALONE, GradientSum, Workers
from mmar_jobs.qlora.lora import LoraModel, attach_lora
from mmar_jobs.qlora.memory import MemoryPlan, Trained, plan_memory
from mmar_jobs.qlora.optimizer import build_optimizer
from mmar_jobs.qlora.packing import TrainRow, pack
from mmar_jobs.qlora.policy import PolicyGradient
from mmar_jobs.qlora.recipes import LoraRecipe, PolicyRecipe, TrainRecipe
from mmar_jobs.qlora.step import CROSS_ENTROPY, Fit, share_rows, take_step


@dataclass(frozen=True, slots=True)
class _Rows:
    rows: Sequence[TrainRow]
    audio: dict[str, Tensor]

    @property
    def lengths(self) -> list[int]:
        return [row.num_tokens for row in self.rows]

    @property
    def completion_tokens(self) -> int:
        return sum(row.num_labels for row in self.rows)


def run_train_bench(
    bench: TrainBench, device: torch.device, environment: Environment, workers: Workers = ALONE
) -> Iterator[Measurement]:
    """Measure every row size, ours first; yields figures as they come, this process's own.

    Raises SettingsError where a row does not fit the memory budget, or rows cannot be dealt out.
    """
    _check_rows(bench)
    _limit_memory(bench, device)
    rows = {tokens: _draw(bench, tokens) for tokens in bench.tokens}
    measured: list[Figures] = []
    with _fits("the trainer"):
        ours = _Ours(bench, device, workers)
        for tokens in bench.tokens:
            figures = Figures(bench, environment, tokens, path="mmar")
            yield from ours.measure(rows[tokens], tokens, figures)
            measured.append(figures)
    del ours
    _free(device)
    if bench.compare:
        with _fits("the stock path"):
            yield from _compare(bench, device, rows, measured)


def _check_rows(bench: TrainBench) -> None:
    if bench.rows < bench.processes:
        raise SettingsError(f"--rows {bench.rows} leaves some of {bench.processes} processes idle")
    if bench.rows == 1:
        return
    if bench.compare:
        raise SettingsError("--compare takes one row a step on one GPU: leave --rows out")
    # Examples of any length would be packed anew, into one row more.
    if not bench.example_tokens or any(num % bench.example_tokens for num in bench.tokens):
        raise SettingsError(
            "several rows a step need --example-tokens that divides --tokens, for example 1024: "
            "then all rows are full"
        )


@contextmanager
def _fits(what: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(f"{what} does not fit into the device's memory: {reason}") from error


def _compare(
    bench: TrainBench,
    device: torch.device,
    rows: Mapping[int, _Rows],
    measured: Sequence[Figures],
) -> Iterator[Measurement]:
    if device.type == "cuda":
        # The experts alone are 58 GB in bf16.
        torch.cuda.set_per_process_memory_fraction(1.0, device.index or 0)
    model = build_thinker(
        bench.model_shape, "none", dtype=_dtype(device), device=device, seed=bench.seed
    )
    stock = StockTrainer(model, _recipe(bench, max(bench.tokens)), rank=bench.rank)
    for ours in measured:
        figures = Figures(bench, ours.environment, ours.tokens, path="peft")
        drawn = rows[ours.tokens]
        take = functools.partial(stock.take_step, drawn.rows, drawn.audio)
        timed = _time_steps(take, bench, device)
        yield from figures.of_steps(timed, stock.factors)
        yield ours.one("ratio_to_peft", "x", "higher", (ours.speed / figures.speed,))


class _Ours:
    """The project's trainer on random weights."""

    def __init__(self, bench: TrainBench, device: torch.device, workers: Workers) -> None:
        self.bench, self.device = bench, device
        model = build_thinker(
            bench.model_shape,
            bench.quantization,
            dtype=_dtype(device),
            device=device,
            seed=bench.seed,
        )
        recipe = LoraRecipe(rank=bench.rank, alpha=2.0 * bench.rank, dropout=bench.dropout)
        self.lora: LoraModel = attach_lora(model, recipe, seed=bench.seed)
        factors = self.lora.factors()
        self.recipe = _recipe(bench, max(bench.tokens))
        self.optimizer = build_optimizer(factors.values(), self.recipe)
        self.gradients = GradientSum(factors, workers)
        self.step = 0

    def measure(self, rows: _Rows, tokens: int, figures: Figures) -> Iterator[Measurement]:
        """All figures of one row size."""
        self.recipe = _recipe(self.bench, tokens)
        self.optimizer.zero_grad(set_to_none=True)
        plan = self._plan(rows, tokens)
        self.lora.keep(plan)
        _free(self.device)  # blocks that fit the size before would be fragments here
        timed = _time_steps(lambda: self.take(rows), self.bench, self.device)
        yield from figures.of_steps(timed, self.lora.factors().values())
        yield from figures.of_memory(timed, plan)
        flops = step_flops(
            self.bench.model_shape, self.bench.rank, rows.lengths, rows.completion_tokens
        )
        yield from figures.of_flops(timed, flops)
        yield from figures.of_parts(self._time_parts(rows, tokens) for _ in timed.seconds)
        step_s = statistics.median(timed.seconds)
        shares = profile_step(lambda: self.take(rows), self.device, step_s=step_s)
        yield from figures.of_profile(shares)

    def _fit(self, rows: _Rows) -> Fit:
        objective = CROSS_ENTROPY
        if self.bench.objective == "grpo":
            objective = PolicyGradient(PolicyRecipe())
        return Fit(self.lora, self.recipe, rows.audio, self.optimizer, self.gradients, objective)

    def take(self, rows: _Rows) -> float:
        """One step of the trainer."""
        result = take_step(self._fit(rows), rows.rows, step=self.step)
        self.step += 1
        return result.loss

    def _plan(self, rows: _Rows, tokens: int) -> MemoryPlan:
        bench = self.bench
        trained = Trained(
            bench.rank,
            bench.optimizer,
            bench.quantization,
            accumulates=bench.rows > bench.processes,
        )
        return plan_memory(
            bench.model_shape,
            tokens,
            bench.memory_bytes,
            completion_tokens=rows.completion_tokens // bench.rows,
            trained=trained,
        )

    def _time_parts(self, rows: _Rows, tokens: int) -> tuple[float, float, float]:
        """Seconds of forward, backward, and optimizer with the gradients' norm, each waited for."""
        fit = self._fit(rows)
        step_loss = fit.objective.of_step(fit, rows.rows)
        self.optimizer.zero_grad(set_to_none=True)
        self.lora.dropout.active = fit.objective.uses_dropout
        forward_s = backward_s = 0.0
        for _, packed, _ in share_rows(list(pack(rows.rows, tokens)), self.gradients):
            at = _now(self.device)
            loss, _ = step_loss.of_row(fit, packed)
            middle = _now(self.device)
            loss.backward()  # type: ignore[no-untyped-call]
            del loss  # as take_step does
            end = _now(self.device)
            forward_s, backward_s = forward_s + middle - at, backward_s + end - middle
        self.lora.dropout.active = False
        at = _now(self.device)
        factors = self.lora.factors().values()
        torch.nn.utils.get_total_norm([f.grad for f in factors if f.grad is not None]).item()
        self.optimizer.step()
        return forward_s, backward_s, _now(self.device) - at


def _recipe(bench: TrainBench, token_budget: int) -> TrainRecipe:
    return TrainRecipe(
        learning_rate=bench.learning_rate, token_budget=token_budget, optimizer=bench.optimizer
    )


def _draw(bench: TrainBench, tokens: int) -> _Rows:
    shape = bench.model_shape
    drawn: list[TrainRow] = []
    clips: dict[str, Tensor] = {}
    for seed in range(bench.seed, bench.seed + bench.rows):
        rows, audio = draw_rows(
            tokens,
            bench.example_tokens,
            hidden=shape.hidden,
            audio_token=shape.vocabulary - 1,
            seed=seed,
        )
        drawn += as_candidates(rows, shape.vocabulary) if bench.objective == "grpo" else rows
        clips |= audio
    return _Rows(drawn, clips)


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _limit_memory(bench: TrainBench, device: torch.device) -> None:
    """Make the allocator fail beyond the budget: a larger card must not hide an overrun."""
    if device.type != "cuda":
        return
    total = torch.cuda.get_device_properties(device).total_memory
    fraction = min(1.0, bench.memory_bytes / total)
    torch.cuda.set_per_process_memory_fraction(fraction, device.index or 0)


def _time_steps(take: Callable[[], float], bench: TrainBench, device: torch.device) -> Timed:
    """Seconds of each step after the warm-up, each waited for; peak over all of them."""
    losses = [take() for _ in range(bench.num_warmup)]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for _ in range(bench.num_steps):
        at = _now(device)
        losses.append(take())
        seconds.append(_now(device) - at)
    return Timed(tuple(seconds), tuple(losses), _read_memory(device))


def _read_memory(device: torch.device) -> MemoryUse | None:
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return MemoryUse(
        reserved=torch.cuda.max_memory_reserved(device),
        beside=total - free - torch.cuda.memory_reserved(device),
    )


def _now(device: torch.device) -> float:
    """Wall clock, once the device has done everything asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
