"""A fabricated run of any size, written through the real artifact API, for tests of the report.

Not here: a model; right and wrong are drawn with chances that rise from iteration to iteration.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report_questions import Plan, answer, make_questions

from mmar_jobs.artifact import Artifact, Draft, begin
from mmar_jobs.identity import ModelIdentity
from mmar_jobs.layout import (
    ADAPTER_WEIGHTS,
    PREDICTIONS,
    VERDICT,
    adapter_key,
    answers_key,
    candidates_key,
    examples_key,
    predictions_key,
    questions_key,
    split_shard,
    submission_key,
    verdict_key,
)
from mmar_jobs.manifest import canonical_json, sha256
from mmar_jobs.questions import Reject
from mmar_jobs.records import Candidate, Example, Prediction, Question, Zone
from mmar_jobs.stages.answering import grades_of
from mmar_jobs.store import Store
from mmar_jobs.submission import pack
from mmar_jobs.tiny.dice import Dice
from mmar_jobs.verdict import Decision, PromotionRule, judge
from mmar_jobs.zone import SelectionRule, Strategy, examples_of

RUN_ID = "demo"
BASE_DIGEST = hashlib.sha256(b"base").hexdigest()
BASE_HASH = ModelIdentity(base_digest=BASE_DIGEST).hash
PROMPT = {"version": "v9"}


def build_run(store: Store, audio_root: Path, plan: Plan) -> None:
    """Write the run's artifacts up to `plan.last_stage` of the last iteration."""
    splits = {
        name: make_questions(audio_root, name, plan) for name in ("train", "heldout", "benchmark")
    }
    questions = _write_questions(store, splits, str(audio_root), plan.rejects)
    parent, decisions = 0, list[Decision]()
    digests = [BASE_DIGEST]
    for number in range(1, len(plan.accuracies)):
        last = number == len(plan.accuracies) - 1
        turn = _Turn(store, plan, number, parent, digests[parent])
        digests.append(turn.adapter_digest)
        if not turn.learn(questions, splits["train"], until=plan.last_stage if last else ""):
            return
        decisions.append(turn.judge(questions, splits["heldout"], decisions))
        if decisions[-1] is Decision.PROMOTE:
            parent = number
    if plan.last_stage == "submit":
        _write_predictions(store, plan, questions, splits["benchmark"], parent)


def _write_questions(
    store: Store, splits: dict[str, list[Question]], root: str, rejects: Sequence[Reject]
) -> Artifact:
    draft = _begin(
        store, questions_key(RUN_ID), "ingest", {"data": {"seed": 0}}, {"train": "0" * 64}
    )
    for split, questions in splits.items():
        draft.write_records(split_shard(split), questions)
    draft.write_records("rejects.jsonl.gz", rejects)
    return draft.finish(
        [*map(split_shard, splits), "rejects.jsonl.gz"],
        counts={f"num_{split}": len(rows) for split, rows in splits.items()}
        | {"num_rejects": len(rejects)},
        metrics={},
        placement={"audio_roots": dict.fromkeys(splits, root)},
        cost={"seconds": 2.4},
    )


def _begin(
    store: Store, key: str, stage: str, recipe: dict[str, Any], inputs: dict[str, str]
) -> Draft:
    draft = begin(store, key, stage=stage, recipe=recipe, inputs=inputs)
    assert isinstance(draft, Draft), f"{key} exists already"
    return draft


@dataclass
class _Turn:
    """One iteration of the fabricated run."""

    store: Store
    plan: Plan
    number: int
    parent: int
    parent_digest: str

    @property
    def weights(self) -> bytes:
        return f"adapter {self.number}".encode()

    @property
    def adapter_digest(self) -> str:
        return sha256(self.weights)

    @property
    def parent_hash(self) -> str:
        return _hash(self.parent)

    def learn(self, questions: Artifact, asked: Sequence[Question], *, until: str) -> bool:
        """Generate, filter and train; False where the plan ends before the verdict."""
        candidates = self._candidates(questions, asked)
        if until == "generate":
            return False
        examples = self._examples(questions, candidates, asked)
        if until == "filter":
            return False
        self._adapter(questions, examples)
        return until != "train"

    def _candidates(self, questions: Artifact, asked: Sequence[Question]) -> Artifact:
        recipe = {
            "sampling": {"num_candidates": self.plan.num_draws, "temperature": 0.9, "top_p": 0.95},
            "prompt": PROMPT,
            "base_digest": BASE_DIGEST,
            "iteration": self.number,
            "muted": False,
        }
        inputs = {"questions": questions.digest, "parent": self.parent_digest}
        draft = _begin(self.store, candidates_key(RUN_ID, self.number), "generate", recipe, inputs)
        accuracy = self.plan.accuracies[self.parent]
        rows = [
            answer(
                question,
                accuracy + Dice("easy", question.id).between(-50, 50),
                draw=draw,
                model_hash=self.parent_hash,
                key=f"draws {self.number}",
            )
            for question in asked
            for draw in range(self.plan.num_draws)
        ]
        draft.write_records("part-00000-of-00001.jsonl.gz", rows)
        return draft.finish(
            ["part-00000-of-00001.jsonl.gz"],
            counts={"num_candidates": len(rows), "num_questions": len(asked)},
            metrics={"mean_token_logprob": -0.31},
            placement={"audio_root": "/somewhere/private"},
            cost={"seconds": 31.5 + self.number, "tokens_per_s": 2104.7},
        )

    def _examples(
        self, questions: Artifact, candidates: Artifact, asked: Sequence[Question]
    ) -> Artifact:
        by_id: dict[str, list[Candidate]] = {question.id: [] for question in asked}
        for row in candidates.records(Candidate):
            by_id[row.question_id].append(row)
        rule = SelectionRule(zone_weights={Zone.MASTERED: 0.0})
        chosen = [examples_of(question, by_id[question.id], rule) for question in asked]
        examples: list[Example] = [example for one in chosen for example in one.examples]
        num_valid = sum(one.rate.num_valid for one in chosen)
        drops = [reason for one in chosen for reason, n in one.drops.items() for _ in range(n)]
        zones = [one.zone for one in chosen]
        recipe = {"filter": {"strategy": Strategy.TOP_K.value, "top_k": 3, "min_valid": 4}}
        inputs = {"questions": questions.digest, "candidates": candidates.digest}
        draft = _begin(self.store, examples_key(RUN_ID, self.number), "filter", recipe, inputs)
        draft.write_records("part-00000-of-00001.jsonl.gz", examples)
        num_candidates = candidates.manifest.counts["num_candidates"]
        return draft.finish(
            ["part-00000-of-00001.jsonl.gz"],
            counts={
                "num_questions": len(asked),
                "num_candidates": num_candidates,
                "num_examples": len(examples),
                "num_learning_zone": sum(z in (Zone.HARD, Zone.MEDIUM, Zone.EASY) for z in zones),
            },
            metrics={
                "valid_rate": num_valid / num_candidates,
                "drops": {reason.value: drops.count(reason) for reason in dict.fromkeys(drops)},
                "zones": {zone.value: zones.count(zone) for zone in Zone},
            },
            placement={},
            cost={"seconds": 0.8},
        )

    def _adapter(self, questions: Artifact, examples: Artifact) -> Artifact:
        recipe = {
            "lora": {"rank": 16, "alpha": 32.0},
            "optim": {"learning_rates": [1e-3, 5e-4], "num_epochs": 1},
            "base_digest": BASE_DIGEST,
            "iteration": self.number,
        }
        inputs = {
            "questions": questions.digest,
            "examples": examples.digest,
            "parent": self.parent_digest,
        }
        draft = _begin(self.store, adapter_key(RUN_ID, self.number), "train", recipe, inputs)
        dice = Dice("loss", self.number)
        losses = [
            0.45 / self.number + 0.4 / (1 + step / 9) + dice.below(100) / 1500 for step in range(40)
        ]
        draft.write_bytes(ADAPTER_WEIGHTS, self.weights)
        draft.write_bytes("steps.json", canonical_json({"losses": losses, "grad_norms": losses}))
        return draft.finish(
            [ADAPTER_WEIGHTS, "steps.json"],
            counts={"num_steps": 40, "num_examples": 320, "num_dropped": 2, "num_tokens": 41_000},
            metrics={"first_loss": losses[0], "last_loss": losses[-1]},
            placement={"model": "/somewhere/private"},
            cost={"seconds": 24.25, "tokens_per_s": 1700.5},
        )

    def judge(
        self, questions: Artifact, asked: Sequence[Question], previous: Sequence[Decision]
    ) -> Decision:
        """Write the answers that are missing and the verdict."""
        parent = self._answers(questions, asked, self.parent, self.parent_digest)
        child = self._answers(questions, asked, self.number, self.adapter_digest)
        muted = self._answers(questions, asked, self.number, self.adapter_digest, muted=True)
        verdict = judge(
            asked,
            grades_of(asked, parent),
            child=grades_of(asked, child),
            muted=grades_of(asked, muted),
            rule=PromotionRule(),
            previous=previous,
        )
        is_promoted = verdict.decision is Decision.PROMOTE
        content = {
            "verdict": verdict.model_dump(mode="json"),
            "next_iteration": self.number if is_promoted else self.parent,
            "parent": _model(self.parent),
            "child": _model(self.number),
        }
        inputs = {
            "questions": questions.digest,
            "parent": parent.digest,
            "child": child.digest,
            "muted": muted.digest,
        }
        recipe = {"gate": {"alpha": 0.05, "patience": 2}, "base_digest": BASE_DIGEST}
        draft = _begin(self.store, verdict_key(RUN_ID, self.number), "evaluate", recipe, inputs)
        draft.write_bytes(VERDICT, canonical_json(content))
        draft.finish(
            [VERDICT],
            counts={"num_questions": verdict.n},
            metrics={"decision": verdict.decision.value},
            placement={},
            cost={},
        )
        return verdict.decision

    def _answers(
        self,
        questions: Artifact,
        asked: Sequence[Question],
        model: int,
        digest: str,
        *,
        muted: bool = False,
    ) -> Artifact:
        recipe = {"prompt": PROMPT, "base_digest": BASE_DIGEST, "muted": muted}
        inputs = {"questions": questions.digest, "model": digest}
        key = answers_key(RUN_ID, _hash(model), muted=muted)
        draft = begin(self.store, key, stage="evaluate", recipe=recipe, inputs=inputs)
        if isinstance(draft, Artifact):
            return draft
        accuracy = self.plan.muted_accuracy if muted else self.plan.accuracies[model]
        rows = [
            answer(one, accuracy, draw=0, model_hash=_hash(model), key=f"exam {model} {muted}")
            for one in asked
        ]
        draft.write_records("part-00000-of-00001.jsonl.gz", rows)
        return draft.finish(
            ["part-00000-of-00001.jsonl.gz"],
            counts={"num_candidates": len(rows)},
            metrics={},
            placement={},
            cost={"seconds": 6.5},
        )


def _hash(model: int) -> str:
    digest = sha256(f"adapter {model}".encode()) if model else None
    return ModelIdentity(base_digest=BASE_DIGEST, adapter_digest=digest).hash


def _model(model: int) -> dict[str, Any]:
    name = f"{RUN_ID}-i{model}-{_hash(model)[:8]}" if model else "base"
    return {"name": name, "iteration": model, "hash": _hash(model)}


def _write_predictions(
    store: Store, plan: Plan, questions: Artifact, asked: Sequence[Question], model: int
) -> None:
    inputs = {
        "questions": questions.digest,
        "model": sha256(f"adapter {model}".encode()) if model else BASE_DIGEST,
    }
    draft = _begin(store, predictions_key(RUN_ID, model), "infer", {"infer": {"votes": 1}}, inputs)
    given = [
        answer(one, plan.accuracies[model], draw=0, model_hash=_hash(model), key="benchmark")
        for one in asked
    ]
    rows = [
        Prediction(
            id=one.question_id,
            thinking_prediction=one.thinking,
            answer_prediction=one.answer or question.choices[0],
            votes={one.answer: 1} if one.answer else {},
        )
        for one, question in zip(given, asked, strict=True)
    ]
    draft.write_records(PREDICTIONS, rows)
    predictions = draft.finish(
        [PREDICTIONS],
        counts={"num_questions": len(rows), "num_unanswered": 1},
        metrics={"model": _model(model)},
        placement={},
        cost={"seconds": 5.1},
    )
    inputs = {"questions": questions.digest, "predictions": predictions.digest}
    draft = _begin(store, submission_key(RUN_ID, model), "submit", {}, inputs)
    draft.write_bytes("submission.zip", pack(rows, asked))
    draft.finish(
        ["submission.zip"],
        counts={"num_predictions": len(rows), "num_over_long": 0},
        metrics={},
        placement={},
        cost={},
    )
