"""Which question is looked at, with which models and settings: from a file, or from a run.

Not here: looking (look.py).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import structlog

from mmar_jobs.artifact import Artifact, find_artifact, require_artifact
from mmar_jobs.audio import Clip, ClipReader
from mmar_jobs.base_model import check_config, model_digest
from mmar_jobs.engine import Sampling
from mmar_jobs.errors import SettingsError
from mmar_jobs.examples import read_examples
from mmar_jobs.inspection.look import Subject, Way
from mmar_jobs.layout import (
    ADAPTER_WEIGHTS,
    BENCHMARK,
    HELDOUT,
    TRAIN,
    candidates_key,
    examples_key,
    questions_key,
)
from mmar_jobs.lineage import BASE, Model, all_verdicts, best_model, check_base, child_of
from mmar_jobs.prompt import SYSTEM_BY_VERSION
from mmar_jobs.prompting.source import read_version
from mmar_jobs.question_file import clips_beside, find_question, heard, read_question_file
from mmar_jobs.questions import audio_root, read_split
from mmar_jobs.recipes import EngineSettings, SamplingRecipe
from mmar_jobs.records import Question
from mmar_jobs.stages.answering import drawn
from mmar_jobs.store import Store, open_store

DEFAULT_VERSION: Final = "v9"
DEFAULT_MAX_TOKENS: Final = 512


@dataclass(frozen=True)
class Asked:
    """What a user asked to see; empty texts and None stand for what the run recorded."""

    question_id: str
    model: Path
    questions: str = ""
    store: str = ""
    run_id: str = ""
    adapter: Path | None = None
    iteration: int | None = None
    audio_root: str = ""
    endpoint_url: str | None = None
    version: str = ""
    variants: tuple[str, ...] = tuple(SYSTEM_BY_VERSION)
    num_draws: int = 3
    max_tokens: int = 0
    engine: EngineSettings = field(default_factory=EngineSettings)


@contextmanager
def open_subject(asked: Asked) -> Iterator[tuple[Subject, Way]]:
    """The subject, and the way of asking; an adapter out of a store is there while this is open."""
    check_config(asked.model)
    if bool(asked.questions) == bool(asked.run_id):
        raise SettingsError("give either --questions FILE, or --store and --run-id of a run")
    if not asked.run_id:
        yield _from_file(asked), _way(asked, {})
        return
    if not asked.store:
        raise SettingsError("--run-id needs --store, where the run's artifacts are")
    store = open_store(asked.store, endpoint_url=asked.endpoint_url)
    with TemporaryDirectory(prefix="mmar-inspect-") as folder:
        yield _from_run(asked, store, Path(folder)), _way(asked, _recorded(store, asked.run_id))


def _from_file(asked: Asked) -> Subject:
    questions = read_question_file(asked.questions, endpoint_url=asked.endpoint_url)
    question = find_question(questions, asked.question_id, asked.questions)
    clips = clips_beside(asked.questions, asked.audio_root, endpoint_url=asked.endpoint_url)
    return _subject(asked, *heard(question, clips), adapter=asked.adapter, example="")


def _from_run(asked: Asked, store: Store, folder: Path) -> Subject:
    artifact = require_artifact(store, questions_key(asked.run_id), stage="ingest")
    question, split = _find(artifact, asked)
    root = audio_root(artifact, split, asked.audio_root)
    clips = ClipReader(root, endpoint_url=asked.endpoint_url)
    adapter, name = asked.adapter, ""
    if adapter is None:
        model = _model(store, asked)
        name = model.name(asked.run_id)
        if model.adapter is not None:
            check_base(model.adapter, model_digest(asked.model))
            model.adapter.download(folder)
            adapter = folder
    example = _example(store, asked.run_id, question.id)
    clip = clips.read(question)
    return _subject(asked, question, clip, adapter=adapter, example=example, name=name)


def _subject(
    asked: Asked,
    question: Question,
    clip: Clip,
    *,
    adapter: Path | None,
    example: str,
    name: str = "",
) -> Subject:
    if adapter is not None and not (adapter / ADAPTER_WEIGHTS).is_file():
        raise SettingsError(f"--adapter {adapter} holds no {ADAPTER_WEIGHTS}: give its folder")
    return Subject(
        question=question,
        clip=clip,
        base=asked.model,
        adapter=adapter,
        adapter_name=name or (f"adapter {adapter.name}" if adapter is not None else ""),
        example=example,
    )


def _find(artifact: Artifact, asked: Asked) -> tuple[Question, str]:
    """The question and the split that it is in."""
    everything: list[Question] = []
    for split in (HELDOUT, TRAIN, BENCHMARK):
        questions = read_split(artifact, split)
        everything += questions
        found = next((q for q in questions if q.id == asked.question_id), None)
        if found is not None:
            return found, split
    return find_question(everything, asked.question_id, f"run {asked.run_id}"), TRAIN


def _model(store: Store, asked: Asked) -> Model:
    if asked.iteration == BASE:
        return Model(BASE, None)
    if asked.iteration is not None:
        return child_of(store, asked.run_id, asked.iteration)
    return best_model(store, asked.run_id)[0]


def _example(store: Store, run_id: str, question_id: str) -> str:
    """The last completion of this question that a finished iteration trained on."""
    for number in range(len(all_verdicts(store, run_id)), 0, -1):
        artifact = find_artifact(store, examples_key(run_id, number))
        for example in read_examples(artifact) if artifact else ():
            if example.question_id == question_id:
                return example.completion
    return ""


def _recorded(store: Store, run_id: str) -> dict[str, Any]:
    """The recipe that the run's candidates were drawn with, empty before there are any."""
    artifact = find_artifact(store, candidates_key(run_id, 1))
    return dict(artifact.manifest.recipe) if artifact else {}


def _way(asked: Asked, recorded: dict[str, Any]) -> Way:
    sampling = SamplingRecipe(**recorded.get("sampling", {"max_tokens": DEFAULT_MAX_TOKENS}))
    if asked.max_tokens:
        sampling = sampling.model_copy(update={"max_tokens": asked.max_tokens})
    known = recorded.get("prompt", {}).get("version", DEFAULT_VERSION)
    seed = sampling.seed * 1000 + 1  # that of iteration 1
    chosen: Sampling = drawn(sampling, seed=seed, logprobs=True)
    alone = replace(chosen, thinking_token_budget=None, repetition_detection=None)
    if alone != chosen:
        reason = "thinking_token_budget and repetition_detection are done by servers only"
        structlog.get_logger().warning("sampling_options_ignored", reason=reason)
    return Way(
        version=read_version(asked.version or known),
        variants=tuple(read_version(version) for version in asked.variants),
        sampling=alone,
        num_draws=asked.num_draws,
        engine=asked.engine,
    )
