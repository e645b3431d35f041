"""Compare parent and child on the held-out questions and record the verdict.

Both answer greedily with the same prompt and precision; answers are kept per model, so a model is
asked once however many verdicts use it. Not here: the decision itself (verdict.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mmar_jobs.artifact import Artifact, begin, require_artifact
from mmar_jobs.audio import ClipReader
from mmar_jobs.base_model import model_digest
from mmar_jobs.errors import PromotionRefused
from mmar_jobs.layout import HELDOUT, VERDICT, answers_key, questions_key, verdict_key
from mmar_jobs.lineage import (
    Model,
    all_verdicts,
    as_record,
    check_base,
    check_prompt,
    child_of,
    parent_of,
    read_verdict,
)
from mmar_jobs.manifest import canonical_json
from mmar_jobs.prompt import template_hash
from mmar_jobs.questions import audio_root, read_split
from mmar_jobs.recipes import recipe
from mmar_jobs.records import Candidate, Question
from mmar_jobs.settings import EvaluateCommand
from mmar_jobs.stages import Edges, stopwatch
from mmar_jobs.stages.answering import Asker, LastEngine, grades_of, greedy, summarise
from mmar_jobs.verdict import Decision, PromotionRule, Verdict, judge

STAGE: Final = "evaluate"


def run(command: EvaluateCommand, edges: Edges) -> Artifact:
    """Make or verify the verdict of one iteration; PromotionRefused where that was asked for."""
    store, run_id = edges.store, command.run_id
    base_digest = model_digest(Path(command.model))
    questions = require_artifact(store, questions_key(run_id), stage="ingest")
    child = child_of(store, run_id, command.iteration)
    assert child.adapter is not None, "an iteration's child always has an adapter"
    check_base(child.adapter, base_digest)
    check_prompt(child.adapter, command.prompt.version)
    parent = parent_of(store, run_id, command.iteration)
    exam = _Exam(command, edges, questions, base_digest)
    answers = {"parent": exam.answers(parent, "parent"), "child": exam.answers(child, "child")}
    if command.gate.muted_control:
        answers["muted"] = exam.answers(child, "child, muted", muted=True)
    draft = begin(
        store,
        verdict_key(run_id, command.iteration),
        stage=STAGE,
        recipe=recipe(("gate", command.gate), ("prompt", command.prompt))
        | {"template_hash": template_hash(command.prompt.version), "base_digest": base_digest},
        inputs={"questions": questions.digest}
        | {who: artifact.digest for who, artifact in answers.items()},
    )
    if isinstance(draft, Artifact):
        return _refused_or(draft, command)
    verdict = _judge(command, edges, exam.asked, answers)
    promoted = child if verdict.decision is Decision.PROMOTE else parent
    content = {
        "verdict": verdict.model_dump(mode="json"),
        "next_iteration": promoted.iteration,
        "parent": as_record(parent, run_id, base_digest),
        "child": as_record(child, run_id, base_digest),
    }
    draft.write_bytes(VERDICT, canonical_json(content))
    finished = draft.finish(
        [VERDICT],
        counts={"num_questions": verdict.n},
        metrics={"decision": verdict.decision.value},
        placement={},
        cost={},
    )
    return _refused_or(finished, command)


def _judge(
    command: EvaluateCommand,
    edges: Edges,
    asked: Sequence[Question],
    answers: Mapping[str, Artifact],
) -> Verdict:
    """Grade the answers and compare them; `answers` has parent, child and perhaps muted."""
    grades = {who: grades_of(asked, artifact) for who, artifact in answers.items()}
    verdict = judge(
        asked,
        grades["parent"],
        child=grades["child"],
        muted=grades.get("muted"),
        rule=_rule(command),
        previous=_previous(edges, command),
    )
    edges.log.info(
        "verdict_reached",
        iteration=command.iteration,
        decision=verdict.decision.value,
        reason="; ".join(verdict.reasons),
    )
    return verdict


@dataclass
class _Exam:
    """Has models answer the held-out questions."""

    command: EvaluateCommand
    edges: Edges
    questions: Artifact
    base_digest: str

    def __post_init__(self) -> None:
        self.asked: Sequence[Question] = read_split(self.questions, HELDOUT)
        base = Path(self.command.model)
        self._engine = LastEngine(
            self.edges, base, self.command.engine, base_digest=self.base_digest
        )

    def answers(self, model: Model, who: str, *, muted: bool = False) -> Artifact:
        """One greedy answer a question by `model`."""
        command = self.command
        asking = greedy(command.sampling, command.prompt.version, muted=muted)
        groups = recipe(("engine", command.engine), ("prompt", command.prompt))
        draft = begin(
            self.edges.store,
            answers_key(command.run_id, model.identity(self.base_digest).hash, muted=muted),
            stage=STAGE,
            recipe=groups
            | {
                "template_hash": template_hash(command.prompt.version),
                "max_tokens": asking.sampling.max_tokens,
                "repetition_penalty": asking.sampling.repetition_penalty,
                "thinking_token_budget": asking.sampling.thinking_token_budget,
                "repetition_detection": command.sampling.repetition_detection.recipe(),
                "questions_per_shard": asking.questions_per_shard,
                "base_digest": self.base_digest,
                "muted": muted,
            },
            inputs={
                "questions": self.questions.digest,
                "model": model.adapter_digest or self.base_digest,
            },
        )
        if isinstance(draft, Artifact):
            return draft
        cost: dict[str, float] = {}
        with stopwatch(cost):
            engine = self._engine.open(model)
            root = audio_root(self.questions, HELDOUT, command.audio_root)
            clips = ClipReader(root, endpoint_url=command.endpoint_url)
            label = f"iteration {command.iteration}: held-out, {who}"
            names = Asker(engine, clips, self.edges, asking).ask(draft, self.asked, label)
        counts, metrics = summarise(
            c for name in names for c in draft.read_records(name, Candidate)
        )
        return draft.finish(names, counts=counts, metrics=metrics, placement={}, cost=cost)


def _rule(command: EvaluateCommand) -> PromotionRule:
    gate = command.gate
    return PromotionRule(
        alpha=gate.alpha,
        min_gain=gate.min_gain,
        regression_alpha=gate.regression_alpha,
        patience=gate.patience,
    )


def _previous(edges: Edges, command: EvaluateCommand) -> list[Decision]:
    earlier = all_verdicts(edges.store, command.run_id)[: command.iteration - 1]
    return [read_verdict(artifact).decision for artifact in earlier]


def _refused_or(artifact: Artifact, command: EvaluateCommand) -> Artifact:
    verdict = read_verdict(artifact)
    if command.fail_on_refusal and verdict.decision is not Decision.PROMOTE:
        raise PromotionRefused(
            f"iteration {command.iteration}: {'; '.join(verdict.reasons)} (--fail-on-refusal)"
        )
    return artifact
