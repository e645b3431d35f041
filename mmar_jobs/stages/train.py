"""Train a QLoRA adapter on the examples, starting from the parent's adapter.

A model is the base and at most one adapter: a child goes on from its parent's factors instead of
stacking a second adapter, so nothing is ever quantised or merged twice. With several processes each
runs this stage; the first alone writes. Not here: how training works (qlora/).
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from torch import Tensor

from mmar_jobs.artifact import Artifact, Draft, begin, file_sha256, require_artifact
from mmar_jobs.base_model import model_digest
from mmar_jobs.encode import load_processor
from mmar_jobs.errors import GateError
from mmar_jobs.examples import read_examples
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
from mmar_jobs.manifest import canonical_json, sha256
from mmar_jobs.prompt import template_hash
from mmar_jobs.qlora.audio_embeds import tower_facts
from mmar_jobs.qlora.device import choose_device, memory_limit, plan_gpu
from mmar_jobs.qlora.distributed import Workers, join_workers
from mmar_jobs.qlora.export import export_adapter, load_adapter
from mmar_jobs.qlora.load import load_thinker
from mmar_jobs.qlora.lora import LoraModel, attach_lora
from mmar_jobs.qlora.packing import TrainRow
from mmar_jobs.qlora.recipes import LoraRecipe
from mmar_jobs.qlora.scalars import WriteScalars, scalars_in
from mmar_jobs.qlora.step import StepResult
from mmar_jobs.qlora.trainer import Surroundings, TrainResult, train
from mmar_jobs.questions import audio_root, read_split
from mmar_jobs.recipes import recipe
from mmar_jobs.records import Example
from mmar_jobs.settings import TrainCommand, launched
from mmar_jobs.stages import Edges, stopwatch
from mmar_jobs.stages.answering import check_identity
from mmar_jobs.stages.checkpoints import StoreCheckpoints
from mmar_jobs.stages.clip_embeds import ClipEmbeds
from mmar_jobs.stages.encoding import Encoding, Reader
from mmar_jobs.stages.objective import (
    check_objective,
    objective_for,
    objective_recipe,
    train_recipe,
    warn_of_warped,
)
from mmar_jobs.store import Store

STAGE: Final = "train"


@dataclass(frozen=True)
class _Place:
    """Where this process computes, and beside whom."""

    device: torch.device
    workers: Workers


@dataclass(frozen=True)
class _Material:
    """What is trained on, and from where; `parent_canary` is what generate's engine said."""

    questions: Artifact
    examples: Sequence[Example]
    parent: Model
    parent_canary: Canary
    base_digest: str


def run(command: TrainCommand, edges: Edges) -> Artifact | None:
    """Make or verify the adapter of one iteration; None in all processes but the first."""
    process = launched()
    device = choose_device(command.hardware.device, process.local_rank)
    with join_workers(process.rank, process.num, device) as workers:
        return _run(command, edges, _Place(device, workers))


def _run(command: TrainCommand, edges: Edges, place: _Place) -> Artifact | None:
    store, run_id = edges.store, command.run_id
    cost: dict[str, float] = {}
    with stopwatch(cost):
        questions = require_artifact(store, questions_key(run_id), stage="ingest")
        examples = require_artifact(store, examples_key(run_id, command.iteration), stage="filter")
        check_objective(command, examples)
        parent = parent_of(store, run_id, command.iteration)
        base_digest = model_digest(Path(command.model))
        if parent.adapter is not None:
            check_base(parent.adapter, base_digest)
            check_prompt(parent.adapter, command.prompt.version)
        inputs = {
            "questions": questions.digest,
            "examples": examples.digest,
            "parent": parent.adapter_digest or base_digest,
        }
        draft = _begin(command, edges, base_digest, inputs) if place.workers.is_first else None
        if place.workers.share(isinstance(draft, Artifact)):
            return draft if isinstance(draft, Artifact) else None
        told = list(read_examples(examples))
        _check_teacher(told, parent.identity(base_digest).hash)
        candidates = require_artifact(
            store, candidates_key(run_id, command.iteration), stage="generate"
        )
        canary = Canary.model_validate(candidates.manifest.metrics["canary"])
        if place.workers.is_first:
            warn_of_warped(command, candidates, edges.log)
        material = _Material(questions, told, parent, canary, base_digest)
        result = _fit(command, edges, material, place, draft)
    if draft is None:
        return None
    assert isinstance(draft, Draft), "a finished artifact was returned above"
    finished = draft.finish(
        [ADAPTER_WEIGHTS, ADAPTER_CONFIG, CANARY, STEPS],
        counts=_counts(result),
        metrics=_metrics(result),
        placement={
            "model": command.model,
            "device": _device_name(place.device),
            "processes": place.workers.num,
        },
        cost=cost | {"tokens_per_s": round(result.num_tokens / max(result.seconds, 1e-9), 1)},
    )
    _checkpoints(command, store).clear()
    return finished


def _begin(
    command: TrainCommand, edges: Edges, base_digest: str, inputs: Mapping[str, str]
) -> Artifact | Draft:
    return begin(
        edges.store,
        adapter_key(command.run_id, command.iteration),
        stage=STAGE,
        recipe=_recipe(command, base_digest),
        inputs=inputs,
    )


def _checkpoints(command: TrainCommand, store: Store) -> StoreCheckpoints:
    return StoreCheckpoints(store, checkpoint_key(command.run_id, command.iteration))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _fit(
    command: TrainCommand,
    edges: Edges,
    material: _Material,
    place: _Place,
    draft: Artifact | Draft | None,
) -> TrainResult:
    """Train, export and upload; the canary is answered by a fresh engine that loads the export."""
    base = Path(command.model)
    if command.engine.threads:
        torch.set_num_threads(command.engine.threads)
    model = load_thinker(
        base,
        dtype=getattr(torch, command.engine.dtype),
        device=place.device,
        quantization=command.lora.quantization,
    )
    with TemporaryDirectory(prefix="mmar-train-") as scratch:
        rows, audio = _encode(command, edges, material, model, place, Path(scratch))
        lora = attach_lora(
            model,
            LoraRecipe(command.lora.rank, command.lora.alpha, command.lora.dropout),
            seed=command.optim.seed,
        )
        if material.parent.adapter is not None:
            material.parent.adapter.download(Path(scratch) / "parent")
            load_adapter(lora, Path(scratch) / "parent")
        around = Surroundings(
            checkpoints=_checkpoints(command, edges.store),
            workers=place.workers,
            base=f"{material.base_digest} {command.engine.dtype} {command.lora.quantization}",
            pages_optimizer=_plan(command, edges, lora, place),
        )
        result = _train(command, edges, lora, rows, audio=audio, around=around)
        if isinstance(draft, Draft):
            child = Path(scratch) / "child"
            export_adapter(lora, child, base.name, metadata=_metadata(command, material))
            del model, lora, audio
            _upload(command, edges, material, child, draft)
            draft.write_bytes(STEPS, canonical_json(json.loads(json.dumps(_steps(result)))))
    return result


def _upload(
    command: TrainCommand, edges: Edges, material: _Material, child: Path, draft: Draft
) -> None:
    canary = _ask_canary(command, edges, child, material)
    draft.upload(child / ADAPTER_WEIGHTS, ADAPTER_WEIGHTS)
    draft.upload(child / ADAPTER_CONFIG, ADAPTER_CONFIG)
    draft.write_bytes(CANARY, canary.model_dump_json().encode())


def _metadata(command: TrainCommand, material: _Material) -> dict[str, str]:
    """What the adapter's file says of itself."""
    return {
        "run_id": command.run_id,
        "iteration": str(command.iteration),
        "base_digest": material.base_digest,
        "parent_digest": material.parent.adapter_digest or material.base_digest,
        "recipe_digest": sha256(canonical_json(_recipe(command, material.base_digest))),
    }


def _ask_canary(command: TrainCommand, edges: Edges, child: Path, material: _Material) -> Canary:
    """The exported child's canary; GateError from an engine that does not apply the adapter."""
    engine = edges.open_engine(Path(command.model), child, command.engine.in_process())
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
    command: TrainCommand,
    edges: Edges,
    material: _Material,
    model: Any,
    place: _Place,
    scratch: Path,
) -> tuple[list[TrainRow], Mapping[str, Tensor]]:
    """Every example as a row, and the embeddings of all their clips."""
    by_id = {question.id: question for question in read_split(material.questions, TRAIN)}
    reader = Reader(
        processor=load_processor(Path(command.model)),
        audio_root=audio_root(material.questions, TRAIN, command.audio_root),
        endpoint_url=command.endpoint_url,
        prompt_version=command.prompt.version,
    )
    facts = tower_facts(material.base_digest, command.engine.dtype, place.device)
    folder = scratch / "clip-embeds"
    folder.mkdir()
    clip_embeds = ClipEmbeds(edges.store, facts, folder, edges.log)
    encoding = Encoding(model, reader, clip_embeds, place.workers)
    label = f"iteration {command.iteration}: encoding"
    with edges.track(label, len(material.examples)) as advance:
        rows = encoding.rows(material.examples, by_id, advance)
    return rows, clip_embeds.embeds


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
    around: Surroundings,
) -> TrainResult:
    fitted = train_recipe(command)
    num_steps = -(-len(rows) // fitted.examples_per_step) * fitted.num_epochs
    done = 0
    label = f"iteration {command.iteration}: training"
    with edges.track(label, num_steps) as advance, _scalars(command, around.workers) as write:

        def on_step(step: int, _: int, result: StepResult) -> None:
            nonlocal done
            if write is not None:
                write(step, result)
            advance(step - done)
            done = step

        return train(
            lora,
            rows,
            fitted,
            audio=audio,
            around=replace(around, on_step=on_step),
            objective=objective_for(command),
        )


def _scalars(
    command: TrainCommand, workers: Workers
) -> AbstractContextManager[WriteScalars | None]:
    if command.tensorboard is None or not workers.is_first:
        return nullcontext()
    return scalars_in(command.tensorboard / command.run_id / f"iter-{command.iteration}")


def _plan(command: TrainCommand, edges: Edges, lora: LoraModel, place: _Place) -> bool:
    """Fit training into the GPU, if there is one; True if the optimizer must be paged."""
    limit_bytes = memory_limit(command.hardware.memory_gb, place.device)
    if limit_bytes is None:
        return False
    if not lora.is_fused:
        reason = f"engine.dtype {command.engine.dtype}, or a model that the kernels do not know"
        edges.log.warning("training_not_fused", reason=reason)
        return False
    pages_optimizer = plan_gpu(
        lora,
        train_recipe(command),
        limit_bytes=limit_bytes,
        quantization=command.lora.quantization,
        workers=place.workers,
    )
    if pages_optimizer:
        edges.log.warning("optimizer_paged", memory_bytes=limit_bytes)
    return pages_optimizer


def _recipe(command: TrainCommand, base_digest: str) -> dict[str, Any]:
    groups = recipe(("lora", command.lora), ("optim", command.optim), ("prompt", command.prompt))
    return (
        groups
        | objective_recipe(command)
        | {
            "template_hash": template_hash(command.prompt.version),
            "dtype": command.engine.dtype,
            "base_digest": base_digest,
            "iteration": command.iteration,
        }
    )


def _counts(result: TrainResult) -> dict[str, int]:
    return {
        "num_steps": result.num_steps,
        "num_examples": result.num_examples,
        "num_dropped": result.num_dropped,
        "num_tokens": result.num_tokens,
    }


def _metrics(result: TrainResult) -> dict[str, Any]:
    found: dict[str, Any] = {
        "first_loss": result.first_loss,
        "last_loss": result.last_loss,
        "audio_tower_digest": result.audio_tower_digest,
    }
    if result.facts:
        found |= {"candidates": dict(result.facts), "stop_reason": result.stop_reason}
    return found


def _steps(result: TrainResult) -> dict[str, Any]:
    """What is kept of every step."""
    found: dict[str, Any] = {"losses": result.losses, "grad_norms": result.grad_norms}
    return found | {"metrics": result.metrics} if result.metrics else found
