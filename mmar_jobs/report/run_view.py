"""Everything that a run has recorded so far, read off its artifacts.

Not here: what it means (findings.py), how it looks (page.py), and making artifacts.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mmar_jobs.artifact import MANIFEST, PLAN, Artifact, find_artifact
from mmar_jobs.errors import DataError
from mmar_jobs.layout import (
    BENCHMARK,
    HELDOUT,
    PREDICTIONS,
    REJECTS,
    STEPS,
    TRAIN,
    VERDICT,
    adapter_key,
    answers_key,
    candidates_key,
    examples_key,
    muted_key,
    predictions_key,
    questions_key,
    run_key,
    submission_key,
    verdict_key,
)
from mmar_jobs.lineage import best_iteration
from mmar_jobs.questions import Reject, read_split
from mmar_jobs.records import Candidate, Finish, Prediction, Question
from mmar_jobs.store import Store
from mmar_jobs.verdict import Verdict

# Predictions and submission lie in folders of this name too, iter-0 for the base.
_ITERATION: Final = re.compile(r"runs/[^/]+/iter-(\d+)/")


@dataclass(frozen=True)
class ModelName:
    """A model as a verdict names it; iteration 0 is the base."""

    name: str
    iteration: int
    hash: str


@dataclass(frozen=True)
class Iteration:
    """What one iteration has finished, None for what it has not."""

    number: int
    candidates: Artifact | None
    muted: Artifact | None
    examples: Artifact | None
    adapter: Artifact | None
    verdict_artifact: Artifact | None
    verdict: Verdict | None
    parent: ModelName | None
    child: ModelName | None
    losses: tuple[float, ...]
    step_metrics: tuple[Mapping[str, float], ...]  # of a policy gradient, else empty
    num_tokens: Mapping[int, int]  # completions by their length in tokens
    num_cut: int


@dataclass(frozen=True)
class Answers:
    """One model's greedy answers to the held-out questions."""

    artifact: Artifact
    by_id: Mapping[str, Candidate]


@dataclass(frozen=True)
class Run:
    """A run, finished or not; `missing` says in words what it lacks."""

    run_id: str
    questions: Artifact | None
    splits: Mapping[str, Sequence[Question]]
    rejects: Sequence[Reject]
    iterations: Sequence[Iteration]
    answers: Mapping[tuple[str, bool], Answers]  # by model hash and whether muted
    predictions_artifact: Artifact | None
    predictions: Sequence[Prediction]
    submission: Artifact | None
    missing: Sequence[str]


def read_run(store: Store, run_id: str) -> Run:
    """Read a run; DataError where it has no finished artifact, GateError where one is damaged."""
    keys = store.list(f"{run_key(run_id)}/")
    questions = find_artifact(store, questions_key(run_id))
    numbers = sorted({int(found[1]) for key in keys if (found := _ITERATION.match(key))})
    iterations = [_read_iteration(store, run_id, number) for number in numbers]
    best = best_iteration(store, run_id)
    predictions = find_artifact(store, predictions_key(run_id, best))
    submission = find_artifact(store, submission_key(run_id, best))
    parts = [part for turn in iterations for part in artifacts_of(turn)]
    if not any([questions, predictions, submission, *parts]):
        raise DataError(
            f"{store.uri} has no finished artifact of run {run_id}, so there is nothing to report: "
            "check --store and --run-id, or start the run"
        )
    splits = (TRAIN, HELDOUT, BENCHMARK) if questions else ()
    return Run(
        run_id=run_id,
        questions=questions,
        splits={split: read_split(questions, split) for split in splits if questions},
        rejects=list(questions.read_records(REJECTS, Reject)) if questions else [],
        iterations=iterations,
        answers=_read_answers(store, run_id, iterations),
        predictions_artifact=predictions,
        predictions=list(predictions.read_records(PREDICTIONS, Prediction)) if predictions else [],
        submission=submission,
        missing=_missing(set(keys), run_id, iterations, best=best),
    )


def artifacts_of(iteration: Iteration) -> list[Artifact]:
    """The finished artifacts of one iteration, in the order in which they were made."""
    parts = (
        iteration.muted,
        iteration.candidates,
        iteration.examples,
        iteration.adapter,
        iteration.verdict_artifact,
    )
    return [part for part in parts if part is not None]


def _read_iteration(store: Store, run_id: str, number: int) -> Iteration:
    candidates = find_artifact(store, candidates_key(run_id, number))
    adapter = find_artifact(store, adapter_key(run_id, number))
    steps: dict[str, Any] = adapter.read_json(STEPS) if adapter else {}
    verdict = find_artifact(store, verdict_key(run_id, number))
    content: dict[str, Any] = verdict.read_json(VERDICT) if verdict else {}
    num_tokens: Counter[int] = Counter()
    num_cut = 0
    if candidates is not None:
        for candidate in candidates.records(Candidate):
            num_tokens[candidate.num_tokens] += candidate.finish is not Finish.ERROR
            num_cut += candidate.finish is Finish.LENGTH
    return Iteration(
        number=number,
        candidates=candidates,
        muted=find_artifact(store, muted_key(run_id, number)),
        examples=find_artifact(store, examples_key(run_id, number)),
        adapter=adapter,
        verdict_artifact=verdict,
        verdict=Verdict.model_validate(content["verdict"]) if verdict else None,
        parent=ModelName(**content["parent"]) if verdict else None,
        child=ModelName(**content["child"]) if verdict else None,
        losses=tuple(steps.get("losses", ())),
        step_metrics=tuple(steps.get("metrics", ())),
        num_tokens=+num_tokens,
        num_cut=num_cut,
    )


def _read_answers(
    store: Store, run_id: str, iterations: Sequence[Iteration]
) -> dict[tuple[str, bool], Answers]:
    models = [model for turn in iterations for model in (turn.parent, turn.child) if model]
    found: dict[tuple[str, bool], Answers] = {}
    for digest in dict.fromkeys(model.hash for model in models):
        for muted in (False, True):
            artifact = find_artifact(store, answers_key(run_id, digest, muted=muted))
            if artifact is not None:
                records = {row.question_id: row for row in artifact.records(Candidate)}
                found[digest, muted] = Answers(artifact, records)
    return found


def _missing(
    keys: set[str], run_id: str, iterations: Sequence[Iteration], *, best: int
) -> list[str]:
    """One line for every artifact that is begun or due and not finished, in order of the stages."""
    due = [("the questions", questions_key(run_id), "ingest")]
    is_submitted = f"{submission_key(run_id, best)}/{MANIFEST}" in keys
    # An iteration that ended the loop, with nothing left to learn, has no verdict and needs none.
    turns = [turn for turn in iterations if turn.verdict or not is_submitted]
    for number in [turn.number for turn in turns] or [1]:
        due += [
            (f"the candidates of iteration {number}", candidates_key(run_id, number), "generate"),
            (f"the examples of iteration {number}", examples_key(run_id, number), "filter"),
            (f"the adapter of iteration {number}", adapter_key(run_id, number), "train"),
            (f"the verdict of iteration {number}", verdict_key(run_id, number), "evaluate"),
        ]
    due += [
        ("the predictions for the benchmark", predictions_key(run_id, best), "infer"),
        ("the submission", submission_key(run_id, best), "submit"),
    ]
    lines = []
    for what, key, stage in due:
        if f"{key}/{MANIFEST}" in keys:
            continue
        state = "begun and not finished" if f"{key}/{PLAN}" in keys else "not begun"
        lines.append(f"{what} ({state}: run the {stage} stage)")
    return lines
