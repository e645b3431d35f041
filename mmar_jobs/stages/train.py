"""Train a QLoRA adapter on the examples, starting from the parent's adapter.

A model is the base and at most one adapter: a child goes on from its parent's factors instead of
stacking a second adapter, so nothing is ever quantised or merged twice. Not here: how training
works (qlora/).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from torch import Tensor

from mmar_jobs.artifact import Artifact, Draft, begin, file_sha256, require_artifact
from mmar_jobs.audio import ClipReader
from mmar_jobs.base_model import model_digest
from mmar_jobs.encode import encode_prompt, load_processor
from mmar_jobs.errors import GateError
from mmar_jobs.identity import Canary, ModelIdentity
from mmar_jobs.layout import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CANARY,
    STEPS,
    TRAIN,
    adapter_key,
    candidates_key,
    checkpoint_key,
    examples_key,
    questions_key,
)
from mmar_jobs.lineage import Model, check_base, check_prompt, parent_of
from mmar_jobs.manifest import canonical_json
from mmar_jobs.prompt import render, template_hash
from mmar_jobs.qlora.audio_embeds import AudioEmbeds, MelFeatures
from mmar_jobs.qlora.encode import encode_example
from mmar_jobs.qlora.export import export_adapter, load_adapter
from mmar_jobs.qlora.load import load_thinker
from mmar_jobs.qlora.lora import LoraModel, attach_lora
from mmar_jobs.qlora.packing import TrainRow
from mmar_jobs.qlora.recipes import LoraRecipe, TrainRecipe
from mmar_jobs.qlora.step import StepResult
from mmar_jobs.qlora.trainer import TrainResult, train
from mmar_jobs.questions import audio_root, read_split
from mmar_jobs.recipes import OptimSettings, recipe
from mmar_jobs.records import Example, Question
from mmar_jobs.settings import TrainCommand
from mmar_jobs.stages import Edges, stopwatch
from mmar_jobs.stages.answering import check_identity
from mmar_jobs.store import Store

STAGE: Final = "train"


@dataclass(frozen=True)
class StoreCheckpoints:
    """The newest checkpoint of one training run, kept in the store under one key."""

    store: Store
    key: str

    def latest(self) -> bytes | None:
        """Bytes of the newest checkpoint, None before the first."""
        return self.store.read(self.key) if self.store.exists(self.key) else None

    def save(self, step: int, data: bytes) -> None:
        """Replace the checkpoint; the store does so atomically, so one is enough."""
        del step
        self.store.write(self.key, data)


def run(command: TrainCommand, edges: Edges) -> Artifact:
    """Make or verify the adapter of one iteration."""
    store, run_id = edges.store, command.run_id
    questions = require_artifact(store, questions_key(run_id), stage="ingest")
    examples = require_artifact(store, examples_key(run_id, command.iteration), stage="filter")
    parent = parent_of(store, run_id, command.iteration)
    base_digest = model_digest(Path(command.model))
    if parent.adapter is not None:
        check_base(parent.adapter, base_digest)
        check_prompt(parent.adapter, command.prompt.version)
    draft = begin(
        store,
        adapter_key(run_id, command.iteration),
        stage=STAGE,
        recipe=_recipe(command, base_digest),
        inputs={
            "questions": questions.digest,
            "examples": examples.digest,
            "parent": parent.adapter_digest or base_digest,
        },
    )
    if isinstance(draft, Artifact):
        return draft
    checkpoints = StoreCheckpoints(store, checkpoint_key(run_id, command.iteration))
    cost: dict[str, float] = {}
    with stopwatch(cost):
        told = list(examples.records(Example))
        _check_teacher(told, parent.identity(base_digest).hash)
        canary = _parent_canary(store, run_id, command.iteration)
        material = _Material(questions, told, parent, canary)
        result = _fit(command, edges, material, checkpoints, draft)
    finished = draft.finish(
        [ADAPTER_WEIGHTS, ADAPTER_CONFIG, CANARY, STEPS],
        counts=_counts(result),
        metrics=_metrics(result),
        placement={"model": command.model},
        cost=cost | {"tokens_per_s": round(result.num_tokens / max(result.seconds, 1e-9), 1)},
    )
    store.delete(checkpoints.key)
    return finished


@dataclass(frozen=True)
class _Material:
    """What is trained on, and from where; `parent_canary` is what generate's engine said."""

    questions: Artifact
    examples: Sequence[Example]
    parent: Model
    parent_canary: Canary


def _fit(
    command: TrainCommand,
    edges: Edges,
    material: _Material,
    checkpoints: StoreCheckpoints,
    draft: Draft,
) -> TrainResult:
    """Train, export and upload; the canary is answered by a fresh engine that loads the export."""
    base = Path(command.model)
    if command.engine.threads:
        torch.set_num_threads(command.engine.threads)
    model = load_thinker(
        base, dtype=getattr(torch, command.engine.dtype), device=torch.device("cpu")
    )
    rows, audio = _encode(command, edges, material, model)
    lora = attach_lora(
        model,
        LoraRecipe(command.lora.rank, command.lora.alpha, command.lora.dropout),
        seed=command.optim.seed,
    )
    with TemporaryDirectory(prefix="mmar-train-") as scratch:
        if material.parent.adapter is not None:
            material.parent.adapter.download(Path(scratch) / "parent")
            load_adapter(lora, Path(scratch) / "parent")
        result = _train(command, edges, lora, rows, audio=audio, checkpoints=checkpoints)
        child = Path(scratch) / "child"
        export_adapter(lora, child, base.name)
        del model, lora, audio
        canary = _ask_canary(command, edges, child, material)
        draft.upload(child / ADAPTER_WEIGHTS, ADAPTER_WEIGHTS)
        draft.upload(child / ADAPTER_CONFIG, ADAPTER_CONFIG)
    draft.write_bytes(CANARY, canary.model_dump_json().encode())
    steps = {"losses": result.losses, "grad_norms": result.grad_norms}
    draft.write_bytes(STEPS, canonical_json(json.loads(json.dumps(steps))))
    return result


def _parent_canary(store: Store, run_id: str, iteration: int) -> Canary:
    candidates = require_artifact(store, candidates_key(run_id, iteration), stage="generate")
    return Canary.model_validate(candidates.manifest.metrics["canary"])


def _ask_canary(command: TrainCommand, edges: Edges, child: Path, material: _Material) -> Canary:
    """The exported child's canary; GateError from an engine that does not apply the adapter."""
    engine = edges.open_engine(Path(command.model), child, command.engine)
    expected = ModelIdentity(
        base_digest=model_digest(Path(command.model)),
        adapter_digest=file_sha256(child / ADAPTER_WEIGHTS),
    )
    check_identity(engine, expected, name=f"iteration {command.iteration}")
    canary = engine.canary()
    if canary == material.parent_canary:
        raise GateError(
            f"iteration {command.iteration} answers the canary exactly like its parent: the engine "
            "serves the parent under another name, or the adapter has no effect"
        )
    return canary


def _encode(
    command: TrainCommand, edges: Edges, material: _Material, model: Any
) -> tuple[list[TrainRow], AudioEmbeds]:
    """Encode every example and embed every clip once."""
    processor = load_processor(Path(command.model))
    by_id = {question.id: question for question in read_split(material.questions, TRAIN)}
    root = audio_root(material.questions, TRAIN, command.audio_root)
    clips = ClipReader(root, endpoint_url=command.endpoint_url)
    rows: list[TrainRow] = []
    audio = AudioEmbeds(model)
    prompts: dict[str, Any] = {}
    label = f"iteration {command.iteration}: encoding"
    with edges.track(label, len(material.examples)) as advance:
        for example in material.examples:
            if example.question_id not in prompts:
                question = _asked(by_id, example, command.prompt.version)
                prompt = render(question, command.prompt.version)
                encoded = encode_prompt(
                    processor, prompt, clips.read(question), question_id=question.id
                )
                mel = MelFeatures(question.audio_sha256, encoded.features_MF)
                audio.add([mel], [encoded.num_audio_tokens])
                prompts = {example.question_id: encoded}
            rows.append(
                encode_example(
                    processor,
                    prompts[example.question_id],
                    example.completion,
                    question_id=example.question_id,
                    audio_sha256=example.audio_sha256,
                    weight=example.weight,
                )
            )
            advance(1)
    return rows, audio


def _asked(by_id: Mapping[str, Question], example: Example, prompt_version: str) -> Question:
    """The example's question; GateError unless its prompt and clip are those that were answered."""
    question = by_id.get(example.question_id)
    if question is None:
        raise GateError(
            f"example of unknown question {example.question_id}: it is not in the training split"
        )
    if render(question, prompt_version).hash != example.prompt_hash:
        raise GateError(
            f"question {question.id}: training would render another prompt ({prompt_version}) than "
            "the one that was answered: use the prompt version of generate"
        )
    if question.audio_sha256 != example.audio_sha256:
        raise GateError(f"question {question.id}: its clip is not the one that was answered")
    return question


def _check_teacher(examples: Sequence[Example], parent_hash: str) -> None:
    odd = next((example for example in examples if example.model_hash != parent_hash), None)
    if odd is not None:
        raise GateError(
            f"question {odd.question_id} draw {odd.draw} was answered by model "
            f"{odd.model_hash[:12]}, this iteration's parent is {parent_hash[:12]}: "
            "the candidates are of another model"
        )


def _train(
    command: TrainCommand,
    edges: Edges,
    lora: LoraModel,
    rows: Sequence[TrainRow],
    *,
    audio: Mapping[str, Tensor],
    checkpoints: StoreCheckpoints,
) -> TrainResult:
    fitted = _train_recipe(command.optim, command.iteration, command.checkpoint_every_steps)
    num_steps = -(-len(rows) // fitted.examples_per_step) * fitted.num_epochs
    done = 0
    with edges.track(f"iteration {command.iteration}: training", num_steps) as advance:

        def on_step(step: int, _: int, result: StepResult) -> None:
            nonlocal done
            del result
            advance(step - done)
            done = step

        return train(lora, rows, fitted, audio=audio, checkpoints=checkpoints, on_step=on_step)


def _train_recipe(optim: OptimSettings, iteration: int, every: int) -> TrainRecipe:
    rates = optim.learning_rates
    values = optim.model_dump(exclude={"learning_rates"})
    return TrainRecipe(
        learning_rate=rates[min(iteration, len(rates)) - 1], checkpoint_every_steps=every, **values
    )


def _recipe(command: TrainCommand, base_digest: str) -> dict[str, Any]:
    groups = recipe(("lora", command.lora), ("optim", command.optim), ("prompt", command.prompt))
    return groups | {
        "template_hash": template_hash(command.prompt.version),
        "dtype": command.engine.dtype,
        "base_digest": base_digest,
        "iteration": command.iteration,
    }


def _counts(result: TrainResult) -> dict[str, int]:
    return {
        "num_steps": result.num_steps,
        "num_examples": result.num_examples,
        "num_dropped": result.num_dropped,
        "num_tokens": result.num_tokens,
    }


def _metrics(result: TrainResult) -> dict[str, Any]:
    return {
        "first_loss": result.first_loss,
        "last_loss": result.last_loss,
        "audio_tower_digest": result.audio_tower_digest,
    }
