"""Fitting an adapter.

Every step in order, checkpoints, and the gates that nothing trained cannot pass.

Not here: one step (step.py), which examples (stages/train), where checkpoints live.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmar_jobs.errors import GateError, TryAgain
from mmar_jobs.qlora.audit import audio_tower_digest, audit, check_audit
from mmar_jobs.qlora.checkpoint import Checkpoints, Progress, dump_state, restore_state
from mmar_jobs.qlora.lora import LoraModel
from mmar_jobs.qlora.packing import TrainRow, digest_rows, schedule_steps, split_over_long
from mmar_jobs.qlora.recipes import TrainRecipe, fingerprint
from mmar_jobs.qlora.step import StepResult, build_optimizer, learning_rate_at, take_step

OnStep = Callable[[int, int, StepResult], None]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training run did.

    Losses in nats; `seconds` is the time in steps over all attempts; `num_tokens` counts all tokens
    of all forward passes, `num_dropped` the over-long examples.
    """

    num_steps: int
    num_examples: int
    num_dropped: int
    num_tokens: int
    seconds: float
    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    audio_tower_digest: str

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


def train(
    lora: LoraModel,
    rows: Sequence[TrainRow],
    recipe: TrainRecipe,
    *,
    audio: Mapping[str, Tensor],
    checkpoints: Checkpoints | None = None,
    on_step: OnStep | None = None,
) -> TrainResult:
    """Fit the factors in place; resumes from `checkpoints.latest()`.

    `on_step(step, num_steps, result)` is called after each step, counted from 1; it may raise
    TryAgain (preempted): the state is saved first. On CPU the result of a resumed run is the same
    bit for bit. Raises GateError when nothing can be or was trained, when something frozen changed,
    or on a loss that is not finite.
    """
    kept, num_dropped = split_over_long(rows, recipe.token_budget)
    if not kept:
        raise GateError(
            f"nothing to train: {len(rows)} examples, {num_dropped} of them longer than a row of "
            f"{recipe.token_budget} tokens"
        )
    check_audit(audit(lora.model))
    before = _Before(lora)
    run = _Run(lora, kept, recipe, audio, before.factors_digest)
    progress = run.fit(checkpoints, on_step)
    before.check_trained(lora)
    return TrainResult(
        num_steps=progress.num_steps,
        num_examples=len(kept),
        num_dropped=num_dropped,
        num_tokens=progress.num_tokens,
        seconds=progress.seconds,
        losses=tuple(progress.losses),
        grad_norms=tuple(progress.grad_norms),
        audio_tower_digest=before.tower_digest,
    )


class _Run:
    """The loop over steps, with its optimizer and its checkpoints."""

    def __init__(
        self,
        lora: LoraModel,
        rows: Sequence[TrainRow],
        recipe: TrainRecipe,
        audio: Mapping[str, Tensor],
        factors_digest: str,
    ) -> None:
        self.lora, self.rows, self.recipe, self.audio = lora, rows, recipe, audio
        self.fingerprint = fingerprint(lora.recipe, recipe, digest_rows(rows) + factors_digest)
        self.optimizer = build_optimizer(lora.factors().values(), recipe)
        self.progress = Progress()

    def fit(self, checkpoints: Checkpoints | None, on_step: OnStep | None) -> Progress:
        """Take all steps that no checkpoint holds."""
        latest = checkpoints.latest() if checkpoints else None
        if latest is not None:
            self.progress = restore_state(
                latest, self.lora, self.optimizer, fingerprint=self.fingerprint
            )
        steps = schedule_steps(
            len(self.rows),
            examples_per_step=self.recipe.examples_per_step,
            num_epochs=self.recipe.num_epochs,
            seed=self.recipe.seed,
        )
        for step in range(self.progress.num_steps, len(steps)):
            result = self._take(step, steps)
            is_last = step + 1 == len(steps)
            due = (step + 1) % self.recipe.checkpoint_every_steps == 0
            if checkpoints and due and not is_last:
                self._save(checkpoints)
            try:
                if on_step:
                    on_step(step + 1, len(steps), result)
            except TryAgain:
                if checkpoints and not due:
                    self._save(checkpoints)
                raise
        return self.progress

    def _take(self, step: int, steps: Sequence[Sequence[int]]) -> StepResult:
        started = time.monotonic()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(step, len(steps), self.recipe)
        examples = [self.rows[index] for index in steps[step]]
        result = take_step(
            self.lora,
            examples,
            self.recipe,
            audio=self.audio,
            optimizer=self.optimizer,
            step=step,
        )
        self.progress.num_steps = step + 1
        self.progress.num_tokens += result.num_tokens
        self.progress.seconds += time.monotonic() - started
        self.progress.losses.append(result.loss)
        self.progress.grad_norms.append(result.grad_norm)
        return result

    def _save(self, checkpoints: Checkpoints) -> None:
        data = dump_state(self.lora, self.optimizer, self.progress, fingerprint=self.fingerprint)
        checkpoints.save(self.progress.num_steps, data)


class _Before:
    """What must change in training (the factors) and what must not (everything else)."""

    def __init__(self, lora: LoraModel) -> None:
        self.tower_digest = audio_tower_digest(lora.model)
        self.factors_digest = digest_factors(lora)
        self._frozen = _frozen_versions(lora)

    def check_trained(self, lora: LoraModel) -> None:
        """Raise GateError unless every B moved off zero and nothing frozen was written to."""
        if digest_factors(lora) == self.factors_digest:
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


def _frozen_versions(lora: LoraModel) -> dict[str, tuple[int, int]]:
    """Address and write counter of every frozen parameter: free, unlike a digest of 30 B."""
    trained = {id(factor) for factor in lora.factors().values()}
    return {
        name: (parameter.data_ptr(), parameter._version)  # noqa: SLF001 - torch has no public one
        for name, parameter in lora.model.named_parameters()
        if id(parameter) not in trained
    }
