"""Answer each training question K times with the current model.

Not here: what an answer is worth (filter.py), but for questions that stop early in adaptive mode.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from mmar_jobs.artifact import Artifact, begin, require_artifact
from mmar_jobs.audio import ClipReader
from mmar_jobs.base_model import model_digest
from mmar_jobs.datasets.guard import GUARD, guarded_digest
from mmar_jobs.errors import GateError
from mmar_jobs.examples import OBJECTIVE
from mmar_jobs.layout import BENCHMARK, HELDOUT, TRAIN, candidates_key, muted_key, questions_key
from mmar_jobs.lineage import Model, check_base, check_prompt, parent_of
from mmar_jobs.prompt import template_hash
from mmar_jobs.questions import audio_root, read_split
from mmar_jobs.recipes import SamplingRecipe, recipe
from mmar_jobs.records import Candidate, Question
from mmar_jobs.settings import GenerateCommand
from mmar_jobs.split import find_shared
from mmar_jobs.stages import Edges, stopwatch
from mmar_jobs.stages.answering import (
    OPENS_THINKING,
    Asker,
    LastEngine,
    drawn,
    greedy,
    summarise,
)
from mmar_jobs.stages.asking import Asking

STAGE: Final = "generate"


def run(command: GenerateCommand, edges: Edges) -> Artifact:
    """Make or verify one iteration's candidates, and muted answers where the filter wants them."""
    questions = require_artifact(edges.store, questions_key(command.run_id), stage="ingest")
    parent = parent_of(edges.store, command.run_id, command.iteration)
    base_digest = model_digest(Path(command.model))
    if parent.adapter is not None:
        check_base(parent.adapter, base_digest)
        check_prompt(parent.adapter, command.prompt.version)
    asked = pick_questions(_guarded(questions), command.sampling, iteration=command.iteration)
    made = _Maker(command, edges, questions, parent, base_digest)
    if command.filter.audio_dependence or command.rewards_hearing:
        asking = greedy(command.sampling, command.prompt.version, muted=True)
        made.make(muted_key(command.run_id, command.iteration), asking, asked)
    learns_tokens = command.objective != "rest"
    asking = Asking(
        prompt_version=command.prompt.version,
        sampling=drawn(command.sampling, seed=_seed(command), logprobs=learns_tokens),
        blocks=tuple(_blocks(command.sampling)),
        questions_per_shard=command.sampling.questions_per_shard,
        top_k=command.filter.top_k if command.sampling.adaptive else None,
        min_valid=command.filter.min_valid if command.sampling.adaptive else 1,
        keeps_tokens=learns_tokens,
    )
    return made.make(candidates_key(command.run_id, command.iteration), asking, asked)


def _guarded(questions: Artifact) -> list[Question]:
    """The training questions, once more held against the benchmark.

    What ingest recorded is not believed: ids, sources and files are compared again, and the digest
    of what its guard listened to must be that of the rows that are here now. The sounds themselves
    are not decoded again, for each clip is checked against its digest when it is read.
    """
    splits = {name: read_split(questions, name) for name in (TRAIN, HELDOUT, BENCHMARK)}
    shared = find_shared([*splits[TRAIN], *splits[HELDOUT]], splits[BENCHMARK])
    if shared:
        key, why = next(iter(shared.items()))
        raise GateError(
            f"{len(shared)} questions of {questions.key} are contaminated by the benchmark: {key} "
            f"{why}: ingest again under another --run-id"
        )
    learned = [*splits[TRAIN], *splits[HELDOUT]]
    recorded = questions.manifest.metrics.get(GUARD, {})
    if recorded.get("digest") != guarded_digest(learned, splits[BENCHMARK]):
        raise GateError(
            f"{questions.key} holds clips that no guard of this version has held against the "
            "benchmark: ingest again under another --run-id"
        )
    return splits[TRAIN]


class _Maker:
    """Makes one artifact of candidates; the engine is opened only when something is missing."""

    def __init__(
        self,
        command: GenerateCommand,
        edges: Edges,
        questions: Artifact,
        parent: Model,
        base_digest: str,
    ) -> None:
        self._command = command
        self._edges = edges
        self._questions = questions
        self._parent = parent
        self._base_digest = base_digest
        base = Path(command.model)
        self._engine = LastEngine(edges, base, command.engine, base_digest=base_digest)

    def make(self, key: str, asking: Asking, asked: Sequence[Question]) -> Artifact:
        command, edges = self._command, self._edges
        draft = begin(
            edges.store, key, stage=STAGE, recipe=self._recipe(asking), inputs=self._inputs()
        )
        if isinstance(draft, Artifact):
            return draft
        cost: dict[str, float] = {}
        with stopwatch(cost):
            engine = self._engine.open(self._parent)
            root = audio_root(self._questions, TRAIN, command.audio_root)
            clips = ClipReader(root, endpoint_url=command.endpoint_url)
            canary = engine.canary().model_dump(mode="json")
            label = f"iteration {command.iteration}: {key.rpartition('/')[2]}"
            names = Asker(engine, clips, edges, asking).ask(draft, asked, label)
        counts, metrics = summarise(
            c for name in names for c in draft.read_records(name, Candidate)
        )
        cost["tokens_per_s"] = round(counts["num_tokens"] / max(cost["seconds"], 1e-9), 1)
        return draft.finish(
            names,
            counts=counts | {"num_questions": len(asked)},
            metrics=metrics | {"canary": canary, OPENS_THINKING: engine.prompt_opens_thinking},
            placement={"audio_root": root, "model": command.model},
            cost=cost,
        )

    def _recipe(self, asking: Asking) -> dict[str, Any]:
        command = self._command
        groups = recipe(
            ("sampling", command.sampling), ("engine", command.engine), ("prompt", command.prompt)
        )
        return groups | {
            "template_hash": template_hash(command.prompt.version),
            "base_digest": self._base_digest,
            "iteration": command.iteration,
            "muted": asking.muted,
            "top_k": asking.top_k,
            "min_valid": asking.min_valid,
            # Objectives that learn from tokens learn from the same ones.
            **({OBJECTIVE: "grpo"} if asking.keeps_tokens else {}),
        }

    def _inputs(self) -> dict[str, str]:
        return {
            "questions": self._questions.digest,
            "parent": self._parent.adapter_digest or self._base_digest,
        }


def pick_questions(
    questions: Sequence[Question], sampling: SamplingRecipe, *, iteration: int
) -> list[Question]:
    """The questions that an iteration asks: all, or the next fresh slice of a seeded shuffle.

    When all have been used the shuffle starts over: a question comes again after every other.
    """
    count = sampling.questions_per_iteration
    if count == 0 or count >= len(questions):
        return list(questions)

    def lot(question: Question) -> bytes:
        return hashlib.sha256(f"{sampling.seed}\0{question.id}".encode()).digest()

    shuffled = sorted(questions, key=lot)
    first = (iteration - 1) * count
    return [shuffled[index % len(shuffled)] for index in range(first, first + count)]


def _seed(command: GenerateCommand) -> int:
    """Every iteration draws differently: the same question asked again is not the same draw."""
    return command.sampling.seed * 1000 + command.iteration


def _blocks(sampling: SamplingRecipe) -> Iterable[tuple[int, ...]]:
    """Draw indices asked together: all K, or K/4, K/4 and the rest in adaptive mode."""
    count = sampling.num_candidates
    quarter = count // 4
    if not sampling.adaptive or quarter == 0:
        yield tuple(range(count))
        return
    yield tuple(range(quarter))
    yield tuple(range(quarter, 2 * quarter))
    yield tuple(range(2 * quarter, count))
