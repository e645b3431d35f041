"""Asking an engine every question of a list and keeping the answers durable, shard by shard.

Shared by generate, evaluate and infer, so that a model is asked in one way only. Not here: which
questions, which model, how one question is asked (asking.py), and what the answers are for.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from mmar_jobs.artifact import Artifact, Draft
from mmar_jobs.audio import ClipReader
from mmar_jobs.engine import Engine, RepetitionDetection, Sampling, StreamingEngine
from mmar_jobs.engine.probe import check_sampling
from mmar_jobs.errors import GateError
from mmar_jobs.grade import grade
from mmar_jobs.identity import Canary, ModelIdentity, check_canary
from mmar_jobs.layout import CANARY
from mmar_jobs.lineage import Model
from mmar_jobs.manifest import plan_shards
from mmar_jobs.progress import Advance
from mmar_jobs.recipes import EngineSettings, SamplingRecipe
from mmar_jobs.records import Candidate, Grade, Question
from mmar_jobs.stages import Edges
from mmar_jobs.stages.ahead import ask_ahead
from mmar_jobs.stages.asking import Asking, Questioner, check_errors

OPENS_THINKING: Final = "prompt_opens_thinking"


def greedy(recipe: SamplingRecipe, prompt_version: str, *, muted: bool = False) -> Asking:
    """One greedy answer a question, as gate and benchmark use it."""
    sampling = replace(drawn(recipe, seed=0, logprobs=False), temperature=0, top_p=1, top_k=0)
    shard = recipe.questions_per_shard
    return Asking(prompt_version, sampling, ((0,),), questions_per_shard=shard, muted=muted)


def drawn(recipe: SamplingRecipe, *, seed: int, logprobs: bool) -> Sampling:
    """Sampling with the run's temperature and truncation of the softmax."""
    detection = recipe.repetition_detection
    return Sampling(
        temperature=recipe.temperature,
        top_p=recipe.top_p,
        top_k=recipe.top_k,
        repetition_penalty=recipe.repetition_penalty,
        max_tokens=recipe.max_tokens,
        seed=seed,
        logprobs=logprobs,
        thinking_token_budget=recipe.thinking_token_budget or None,
        repetition_detection=RepetitionDetection(
            detection.max_pattern_size, detection.min_pattern_size, detection.min_count
        )
        if detection.max_pattern_size
        else None,
    )


def open_checked_engine(
    edges: Edges, base: Path, model: Model, settings: EngineSettings, *, base_digest: str
) -> Engine:
    """Open an engine and prove by digests and canary that it serves exactly `model`."""
    name = f"iteration {model.iteration}"
    if model.adapter is None:
        engine = edges.open_engine(base, None, settings)
        check_identity(engine, model.identity(base_digest), name="the base")
        return engine
    with TemporaryDirectory(prefix="mmar-adapter-") as folder:
        model.adapter.download(Path(folder))
        engine = edges.open_engine(base, Path(folder), settings)
    check_identity(engine, model.identity(base_digest), name=name)
    expected = Canary.model_validate(model.adapter.read_json(CANARY))
    check_canary(
        expected, engine.canary(), model=name, tolerance_nats=settings.canary_tolerance_nats
    )
    return engine


class LastEngine:
    """Opens models, checked, and keeps the last: vLLM takes minutes to start, and all of a GPU."""

    def __init__(
        self, edges: Edges, base: Path, settings: EngineSettings, *, base_digest: str
    ) -> None:
        self._edges = edges
        self._base = base
        self._settings = settings
        self._base_digest = base_digest
        self._last: tuple[ModelIdentity, Engine] | None = None

    def open(self, model: Model) -> Engine:
        """See open_checked_engine; the engine before is let go first."""
        identity = model.identity(self._base_digest)
        if self._last is None or self._last[0] != identity:
            self._last = None
            engine = open_checked_engine(
                self._edges, self._base, model, self._settings, base_digest=self._base_digest
            )
            self._last = (identity, engine)
        return self._last[1]


def check_identity(engine: Engine, expected: ModelIdentity, *, name: str) -> None:
    """Raise GateError unless the engine serves the expected base and adapter."""
    if engine.identity != expected:
        raise GateError(
            f"the engine serves base {engine.identity.base_digest[:12]} with adapter "
            f"{(engine.identity.adapter_digest or 'none')[:12]}, but {name} is base "
            f"{expected.base_digest[:12]} with adapter {(expected.adapter_digest or 'none')[:12]}: "
            "nothing was asked; serve the right model"
        )


@dataclass(frozen=True)
class Asker:
    """Asks questions of one engine with one set of clips."""

    engine: Engine
    clips: ClipReader
    edges: Edges
    asking: Asking

    def ask(self, draft: Draft, questions: Sequence[Question], label: str) -> list[str]:
        """Make every shard of candidates that is not durable yet; returns the shards' names."""
        draws = sum(map(len, self.asking.blocks))
        check_sampling(self.engine, self.asking.sampling)
        plan = plan_shards(len(questions), self.asking.questions_per_shard)
        shards = {name: questions[part] for name, part in plan}
        missing = {name: chunk for name, chunk in shards.items() if not draft.has(name)}
        with self.edges.track(label, len(questions) * draws) as advance:
            if len(missing) < len(shards):
                advance(draws * (len(questions) - sum(map(len, missing.values()))))
            if isinstance(self.engine, StreamingEngine):
                ask_ahead(self.engine, self._questioner, draft, missing, advance)
                return list(shards)
            for name, chunk in missing.items():
                # Moving by nothing lets a request to stop through between the batches of a shard.
                draft.write_records(name, self._candidates(chunk, lambda _: advance(0)))
                advance(len(chunk) * draws)
        return list(shards)

    @property
    def _questioner(self) -> Questioner:
        return Questioner(self.engine, self.clips, self.asking)

    def _candidates(self, questions: Sequence[Question], on_answer: Advance) -> list[Candidate]:
        found: dict[str, list[Candidate]] = {question.id: [] for question in questions}
        open_questions = list(questions)
        for block in self.asking.blocks:
            requests = [self._questioner.request(question, block) for question in open_questions]
            answers = self.engine.answer(requests, self.asking.sampling, on_answer)
            for question, request, completions in zip(
                open_questions, requests, answers, strict=True
            ):
                found[question.id] += self._questioner.records(question, request, completions)
            open_questions = [
                q for q in open_questions if not self._questioner.is_settled(q, found[q.id])
            ]
        candidates = [candidate for question in questions for candidate in found[question.id]]
        check_errors(candidates)
        return candidates


def grades_of(questions: Sequence[Question], answers: Artifact) -> dict[str, Grade]:
    """Grade by question id of an artifact with one answer a question."""
    by_id = {question.id: question for question in questions}
    grades: dict[str, Grade] = {}
    for candidate in answers.records(Candidate):
        question = by_id.get(candidate.question_id)
        if question is None or candidate.question_id in grades:
            raise GateError(f"{answers.key} holds an unexpected answer to {candidate.question_id}")
        grades[candidate.question_id] = grade(candidate, question)
    return grades


def summarise(candidates: Iterable[Candidate]) -> tuple[dict[str, int], dict[str, Any]]:
    """Counts of candidates for a manifest, finishes and tokens, and the tokens' mean logprob.

    That of those which have one.
    """
    counts: Counter[str] = Counter()
    logprob_sum, num_summed = 0.0, 0
    for candidate in candidates:
        counts["num_candidates"] += 1
        counts["num_tokens"] += candidate.num_tokens
        counts[f"num_{candidate.finish.value}"] += 1
        counts["num_parsed"] += candidate.answer is not None
        if candidate.logprob_sum is not None:
            logprob_sum += candidate.logprob_sum
            num_summed += candidate.num_tokens
    metrics = {"mean_token_logprob": round(logprob_sum / num_summed, 6)} if num_summed else {}
    return dict(counts), metrics
