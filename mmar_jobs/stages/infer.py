"""Answer the benchmark with the best model: greedily, or by the vote of several answers.

Not here: packing (submit.py). The thinking that is handed in is one answer's own, verbatim.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from mmar_jobs.artifact import Artifact, begin, require_artifact
from mmar_jobs.audio import ClipReader
from mmar_jobs.base_model import model_digest
from mmar_jobs.errors import GateError
from mmar_jobs.layout import BENCHMARK, PREDICTIONS, predictions_key, questions_key
from mmar_jobs.lineage import BASE, as_record, best_model, check_base, check_prompt
from mmar_jobs.prompt import template_hash
from mmar_jobs.questions import audio_root, read_split
from mmar_jobs.recipes import recipe
from mmar_jobs.records import Candidate, Finish, Prediction, Question
from mmar_jobs.settings import InferCommand
from mmar_jobs.stages import Edges, stopwatch
from mmar_jobs.stages.answering import Asker, drawn, greedy, open_checked_engine
from mmar_jobs.stages.asking import Asking

STAGE: Final = "infer"
_MAX_UNANSWERED_SHARE: Final = 0.5


def run(command: InferCommand, edges: Edges) -> Artifact:
    """Make or verify the predictions of a run."""
    base_digest = model_digest(Path(command.model))
    questions = require_artifact(edges.store, questions_key(command.run_id), stage="ingest")
    model, verdict = best_model(edges.store, command.run_id)
    if verdict is not None:
        check_base(verdict, base_digest)
        check_prompt(verdict, command.prompt.version)
    asking = _asking(command)
    draft = begin(
        edges.store,
        predictions_key(command.run_id, model.iteration),
        stage=STAGE,
        recipe=_recipe(command, asking) | {"base_digest": base_digest},
        inputs={"questions": questions.digest, "model": model.adapter_digest or base_digest},
    )
    if isinstance(draft, Artifact):
        return draft
    if model.iteration == BASE:
        edges.log.warning("base_model_infers", reason="no iteration was promoted")
    asked = read_split(questions, BENCHMARK)
    cost: dict[str, float] = {}
    with stopwatch(cost):
        engine = open_checked_engine(
            edges, Path(command.model), model, command.engine, base_digest=base_digest
        )
        root = audio_root(questions, BENCHMARK, command.audio_root)
        clips = ClipReader(root, endpoint_url=command.endpoint_url)
        names = Asker(engine, clips, edges, asking).ask(draft, asked, "benchmark")
    candidates = [c for name in names for c in draft.read_records(name, Candidate)]
    predictions = predict(asked, candidates)
    _check_answered(predictions)
    draft.write_records(PREDICTIONS, predictions)
    num_unanswered = sum(not prediction.votes for prediction in predictions)
    if num_unanswered:
        edges.log.warning(
            "answers_unparsed", num_questions=num_unanswered, fallback="a fixed choice"
        )
    return draft.finish(
        [*names, PREDICTIONS],
        counts={"num_questions": len(predictions), "num_unanswered": num_unanswered},
        metrics={"model": as_record(model, command.run_id, base_digest)},
        placement={"audio_root": root, "model": command.model},
        cost=cost,
    )


def _recipe(command: InferCommand, asking: Asking) -> dict[str, Any]:
    """What shapes the answers: of the sampling settings only those that this way of asking uses."""
    groups = recipe(
        ("infer", command.infer), ("engine", command.engine), ("prompt", command.prompt)
    )
    return groups | {
        "template_hash": template_hash(command.prompt.version),
        "sampling": asdict(asking.sampling),
        "questions_per_shard": asking.questions_per_shard,
    }


def _asking(command: InferCommand) -> Asking:
    if command.infer.votes == 1:
        return greedy(command.sampling, command.prompt.version)
    return Asking(
        prompt_version=command.prompt.version,
        sampling=drawn(command.sampling, seed=command.infer.seed, logprobs=True),
        blocks=(tuple(range(command.infer.votes)),),
        questions_per_shard=command.sampling.questions_per_shard,
    )


def _check_answered(predictions: Sequence[Prediction]) -> None:
    """Raise GateError where most questions would be handed in with a choice that no model made."""
    unanswered = [prediction.id for prediction in predictions if not prediction.votes]
    if len(unanswered) <= _MAX_UNANSWERED_SHARE * len(predictions):
        return
    raise GateError(
        f"{len(unanswered)} of {len(predictions)} questions have no answer that can be read, first "
        f"{unanswered[0]}: the thinking tags are lost or the answers cut; look at the predictions, "
        "the prompt and --sampling.max-tokens"
    )


def predict(questions: Sequence[Question], candidates: Iterable[Candidate]) -> list[Prediction]:
    """One prediction a question from its candidates, which lie together."""
    by_id = {
        question_id: list(group)
        for question_id, group in groupby(candidates, key=lambda candidate: candidate.question_id)
    }
    return [vote(question, by_id.get(question.id, [])) for question in questions]


def vote(question: Question, candidates: Sequence[Candidate]) -> Prediction:
    """The most frequent answer; a tie goes to the answer with the most likely candidate.

    The thinking is that of the agreeing candidate with the highest mean token logprob. Where
    nothing could be parsed, `votes` is empty, the answer a choice picked by the question's id, and
    the thinking the first candidate's: the benchmark wants an answer to every question. GateError
    where the engine failed on every candidate: then there is nothing to hand in.
    """
    if candidates and all(candidate.finish is Finish.ERROR for candidate in candidates):
        raise GateError(
            f"question {question.id}: the engine failed on all {len(candidates)} candidates "
            f"({candidates[0].error or 'no message'}): an error is not an answer; delete the "
            "predictions and infer again"
        )
    parsed = [candidate for candidate in candidates if candidate.answer is not None]
    votes = Counter(candidate.answer for candidate in parsed if candidate.answer is not None)
    if not votes:
        digest = hashlib.sha256(question.id.encode()).digest()
        choice = question.choices[int.from_bytes(digest[:4], "big") % len(question.choices)]
        thinking = candidates[0].thinking if candidates else ""
        return Prediction(
            id=question.id, thinking_prediction=thinking, answer_prediction=choice, votes={}
        )
    most = max(votes.values())
    leaders = [candidate for candidate in parsed if votes[str(candidate.answer)] == most]
    best = leaders[0]
    if len(leaders) > 1:
        best = max(leaders, key=lambda candidate: (_mean_logprob(candidate), -candidate.draw))
    return Prediction(
        id=question.id,
        thinking_prediction=best.thinking,
        answer_prediction=str(best.answer),
        votes=dict(votes),
    )


def _mean_logprob(candidate: Candidate) -> float:
    assert candidate.logprob_sum is not None, "votes are drawn with log-probabilities"
    return candidate.logprob_sum / max(1, candidate.num_tokens)
