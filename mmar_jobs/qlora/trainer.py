"""Fitting an adapter.

Every step in order, checkpoints, and the gates that nothing trained cannot pass.

Not here: one step (step.py), which examples (stages/train), where checkpoints live.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog
import torch
from torch import Tensor

from mmar_jobs.errors import GateError, TryAgain
from mmar_jobs.qlora.audit import audio_tower_digest, audit, check_audit
from mmar_jobs.qlora.checkpoint import Checkpoints, CheckpointWriter, Progress, restore_state
from mmar_jobs.qlora.distributed import ALONE, GradientSum, Workers
from mmar_jobs.qlora.lora import LoraModel
from mmar_jobs.qlora.optimizer import build_optimizer
from mmar_jobs.qlora.packing import TrainRow, digest_rows, schedule_steps, split_over_long
from mmar_jobs.qlora.recipes import TrainRecipe, fingerprint
from mmar_jobs.qlora.step import (
    CROSS_ENTROPY,
    Fit,
    Objective,
    StepResult,
    learning_rate_at,
    take_step,
)

OnStep = Callable[[int, int, StepResult], None]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training run did.

    Losses in nats; `seconds` is the time in steps over all attempts; `num_tokens` counts all tokens
    of all forward passes of steps, `num_dropped` the over-long examples. `metrics` of each step and
    `facts` about the examples are the objective's; `stop_reason` says why it ended training early.
    """

    num_steps: int
    num_examples: int
    num_dropped: int
    num_tokens: int
    seconds: float
    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    audio_tower_digest: str
    metrics: tuple[Mapping[str, float], ...] = ()
    facts: Mapping[str, float] = field(default_factory=dict)
    stop_reason: str | None = None

    @property
    def first_loss(self) -> float:
        """Loss of the first step."""
        return self.losses[0]

    @property
    def last_loss(self) -> float:
        """Loss of the last step."""
        return self.losses[-1]


def digest_factors(lora: LoraModel) -> str:
    """SHA-256 over all factors' names and bytes."""
    digest = hashlib.sha256()
    for name, factor in lora.factors().items():
        digest.update(name.encode())
        digest.update(factor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a fit meets outside of itself.

    `on_step(step, num_steps, result)` is called after each step, counted from 1; it may raise
    TryAgain (preempted). `base` names the frozen weights: a checkpoint made over others is refused.
    `pages_optimizer`: its 8-bit moments live in host memory.
    """

    checkpoints: Checkpoints | None = None
    on_step: OnStep | None = None
    workers: Workers = ALONE
    base: str = ""
    pages_optimizer: bool = False


_NOTHING: Final = Surroundings()


def train(
    lora: LoraModel,
    rows: Sequence[TrainRow],
    recipe: TrainRecipe,
    *,
    audio: Mapping[str, Tensor],
    around: Surroundings = _NOTHING,
    objective: Objective = CROSS_ENTROPY,
) -> TrainResult:
    """Fit the factors in place; resumes from the newest checkpoint.

    When `on_step` raises TryAgain, in whichever process, the state after that very step is durable
    before all processes end with TryAgain. On CPU the result of a resumed run is the same bit for
    bit. Raises GateError when nothing can be or was trained, when something frozen changed, or on a
    loss that is not finite; and what a checkpoint could not be saved for.
    """
    kept, num_dropped = split_over_long(rows, recipe.token_budget)
    if not kept:
        raise GateError(
            f"nothing to train: {len(rows)} examples, {num_dropped} of them longer than a row of "
            f"{recipe.token_budget} tokens"
        )
    check_audit(audit(lora.model))
    before = _Before(lora)
    optimizer = build_optimizer(lora.factors().values(), recipe, is_paged=around.pages_optimizer)
    gradients = GradientSum(lora.factors(), around.workers)
    fit = Fit(lora, recipe, audio, optimizer, gradients, objective)
    run = _Run(fit, kept, around, factors=before.factors_digest)
    progress = run.take_all()
    around.workers.check_equal(before.check_trained(lora), "factors after training")
    return TrainResult(
        num_steps=progress.num_steps,
        num_examples=len(kept),
        num_dropped=num_dropped,
        num_tokens=progress.num_tokens,
        seconds=progress.seconds,
        losses=tuple(progress.losses),
        grad_norms=tuple(progress.grad_norms),
        audio_tower_digest=before.tower_digest,
        metrics=tuple(progress.metrics),
        facts=run.facts,
        stop_reason=run.stop_reason(),
    )


class _Run:
    """The loop over steps, with its optimizer and its checkpoints."""

    def __init__(
        self, fit: Fit, rows: Sequence[TrainRow], around: Surroundings, *, factors: str
    ) -> None:
        self.fit, self.around = fit, around
        data = f"{digest_rows(rows)} {factors} {around.base}{fit.objective.name}"
        self.fingerprint = fingerprint(fit.lora.recipe, fit.recipe, data)
        around.workers.check_equal(self.fingerprint, "examples, settings or first factors")
        self.progress, self.reference = self._restore() or (
            Progress(),
            fit.objective.reference(fit, rows),
        )
        self.rows, self.facts = fit.objective.prepare(rows, self.reference)
        self.writer: CheckpointWriter | None = None
        if around.checkpoints is not None and around.workers.is_first:
            self.writer = CheckpointWriter(around.checkpoints)

    def take_all(self) -> Progress:
        """Take all steps that no checkpoint holds, or as many as the objective allows."""
        recipe = self.fit.recipe
        steps = schedule_steps(
            len(self.rows),
            examples_per_step=recipe.examples_per_step,
            num_epochs=recipe.num_epochs,
            seed=recipe.seed,
        )
        try:
            for step in range(self.progress.num_steps, len(steps)):
                if self.stop_reason():
                    break
                result = self._take(step, steps)
                is_due = (step + 1) % recipe.checkpoint_every_steps == 0
                if is_due and step + 1 < len(steps):
                    self._save()
                self._tell(step + 1, len(steps), result)
            if self.writer:
                self.writer.wait()
        finally:
            self.fit.gradients.close()
            if self.writer:
                self.writer.close()
        return self.progress

    def stop_reason(self) -> str | None:
        """Why no further step may be taken; by the history alone: a resumed run says the same."""
        metrics = self.progress.metrics
        return self.fit.objective.stop_reason(metrics[-1]) if metrics else None

    def _restore(self) -> tuple[Progress, dict[str, Tensor]] | None:
        """The state of the checkpoint that the first process finds the newest, if there is one."""
        checkpoints, workers = self.around.checkpoints, self.around.workers
        if checkpoints is None:
            return None
        latest = workers.share(checkpoints.latest() if workers.is_first else None)
        if latest is None:
            return None
        fit = self.fit
        with checkpoints.load(latest) as path:
            restored = restore_state(path, fit.lora, fit.optimizer, fingerprint=self.fingerprint)
        # Nobody goes on to a step whose checkpoint would replace the one that another still reads.
        workers.gather(None)
        if workers.is_first:
            structlog.get_logger().info("training_resumed", num_steps=latest)
        return restored

    def _take(self, step: int, steps: Sequence[Sequence[int]]) -> StepResult:
        started = time.monotonic()
        if self.writer:
            self.writer.check()
        fit = self.fit
        for group in fit.optimizer.param_groups:
            group["lr"] = learning_rate_at(step, len(steps), fit.recipe)
        result = take_step(fit, [self.rows[index] for index in steps[step]], step=step)
        self.progress.num_steps = step + 1
        self.progress.num_tokens += result.num_tokens
        self.progress.seconds += time.monotonic() - started
        self.progress.losses.append(result.loss)
        self.progress.grad_norms.append(result.grad_norm)
        if result.metrics:
            self.progress.metrics.append(dict(result.metrics))
        return result

    def _tell(self, step: int, num_steps: int, result: StepResult) -> None:
        """Call `on_step`; where any process is asked to stop, all save and stop together."""
        stop: TryAgain | None = None
        try:
            if self.around.on_step:
                self.around.on_step(step, num_steps, result)
        except TryAgain as error:
            stop = error
        reasons = self.around.workers.gather(str(stop) if stop else None)
        reason = next((reason for reason in reasons if reason), None)
        if reason is None:
            return
        if self.writer:
            if self.writer.step != step:
                self._save()
            self.writer.wait()
        # A launcher ends all processes as soon as one has ended.
        self.around.workers.gather(None)
        raise stop or TryAgain(reason)

    def _save(self) -> None:
        if self.writer:
            self.writer.start(
                self.fit.lora,
                self.fit.optimizer,
                self.progress,
                reference=self.reference,
                fingerprint=self.fingerprint,
            )


class _Before:
    """What must change in training (the factors) and what must not (everything else)."""

    def __init__(self, lora: LoraModel) -> None:
        self.tower_digest = audio_tower_digest(lora.model)
        self.factors_digest = digest_factors(lora)
        self._frozen = _frozen_versions(lora)

    def check_trained(self, lora: LoraModel) -> str:
        """The factors' new digest; GateError unless every B moved and nothing frozen did."""
        digest = digest_factors(lora)
        if digest == self.factors_digest:
            raise GateError("nothing was trained: the adapter is what it was before the first step")
        for name, factor in lora.factors().items():
            if not torch.isfinite(factor).all():
                raise GateError(
                    f"{name} is not finite after training: the learning rate is too high"
                )
            if name.endswith("_B") and not factor.detach().any():
                raise GateError(
                    f"{name} is still zero after training: this projection was not trained"
                )
        now = _frozen_versions(lora)
        changed = [name for name, version in self._frozen.items() if now.get(name) != version]
        if changed:
            raise GateError(f"frozen parameter {changed[0]} was written to in training")
        if audio_tower_digest(lora.model) != self.tower_digest:
            raise GateError("the audio tower changed in training: it must stay frozen")
        return digest


def _frozen_versions(lora: LoraModel) -> dict[str, tuple[int, int]]:
    """Address and write counter of every frozen parameter: free, unlike a digest of 30 B."""
    trained = {id(factor) for factor in lora.factors().values()}
    return {
        name: (parameter.data_ptr(), parameter._version)  # noqa: SLF001 - torch has no public one
        for name, parameter in lora.model.named_parameters()
        if id(parameter) not in trained
    }
