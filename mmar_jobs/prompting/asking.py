"""Asking one model the same questions with several prompts; answers stay in the store.

An answer is kept by prompt, model, questions and way of asking, so nothing is asked twice: not
after a kill, and not by the next comparison. Not here: what the answers say (compare.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from mmar_jobs.artifact import Artifact, begin
from mmar_jobs.audio import ClipReader
from mmar_jobs.engine import Engine
from mmar_jobs.grade import grade
from mmar_jobs.identity import ModelIdentity
from mmar_jobs.manifest import canonical_json, fingerprint, sha256
from mmar_jobs.prompt import template_hash, variant_name
from mmar_jobs.prompting.compare import Outcome
from mmar_jobs.recipes import EngineSettings, SamplingRecipe, recipe
from mmar_jobs.records import Candidate, Question
from mmar_jobs.stages import Edges, stopwatch
from mmar_jobs.stages.answering import Asker, check_identity, greedy, summarise

STAGE: Final = "prompts"
_SHORT: Final = 12


@dataclass
class Lab:
    """One model, one set of clips, one way of asking: greedy; the engine is opened when needed."""

    edges: Edges
    clips: ClipReader
    identity: ModelIdentity
    open_engine: Callable[[], Engine]
    sampling: SamplingRecipe
    engine: EngineSettings
    _open: Engine | None = field(default=None, init=False)

    @property
    def lease_key(self) -> str:
        """Two commands that ask one model wait for each other."""
        return f"{STAGE}/{self.identity.hash[:_SHORT]}/lease"

    def ask(self, version: str, questions: Sequence[Question]) -> dict[str, Outcome]:
        """What each answer to `questions` with the prompt `version` was worth, by question id."""
        by_id = {question.id: question for question in questions}
        artifact = self._answers(version, questions)
        return {
            found.question_id: Outcome(
                grade=grade(found, by_id[found.question_id]), num_tokens=found.num_tokens
            )
            for found in artifact.records(Candidate)
        }

    def _answers(self, version: str, questions: Sequence[Question]) -> Artifact:
        asking = greedy(self.sampling, version)
        made = recipe(("engine", self.engine)) | {
            "prompt": {"version": version},
            "template_hash": template_hash(version),
            "max_tokens": asking.sampling.max_tokens,
            "repetition_penalty": asking.sampling.repetition_penalty,
            "thinking_token_budget": asking.sampling.thinking_token_budget,
            "repetition_detection": self.sampling.repetition_detection.recipe(),
            "questions_per_shard": asking.questions_per_shard,
        }
        inputs = {"questions": _digest(questions), "model": self.identity.hash}
        folder = f"{self.identity.hash[:_SHORT]}/{template_hash(version)[:_SHORT]}"
        key = f"{STAGE}/{folder}/{fingerprint(STAGE, made, inputs)[:_SHORT]}"
        draft = begin(self.edges.store, key, stage=STAGE, recipe=made, inputs=inputs)
        if isinstance(draft, Artifact):
            return draft
        cost: dict[str, float] = {}
        with stopwatch(cost):
            label = f"{variant_name(version)}, {len(questions)} questions"
            asker = Asker(self._served(), self.clips, self.edges, asking)
            names = asker.ask(draft, questions, label)
        counts, metrics = summarise(
            found for name in names for found in draft.read_records(name, Candidate)
        )
        return draft.finish(names, counts=counts, metrics=metrics, placement={}, cost=cost)

    def _served(self) -> Engine:
        if self._open is None:
            self._open = self.open_engine()
            check_identity(self._open, self.identity, name="the model of this comparison")
        return self._open


def _digest(questions: Sequence[Question]) -> str:
    """Digest of what is asked and heard; metadata does not count."""
    asked: list[Any] = [[q.id, q.text, q.choices, q.audio_sha256] for q in questions]
    return sha256(canonical_json(asked))
