"""The bench of the filter stage: many candidates of ordinary length, as gzip shards in a folder.

Not here: what the filter keeps (stages/filter.py).
"""

import gzip
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mmar_jobs.artifact import Artifact, Draft, begin
from mmar_jobs.audio import SAMPLE_RATE_HZ, num_audio_tokens
from mmar_jobs.bench.child import run_measured
from mmar_jobs.bench.result import Environment, Measurement, Scalar
from mmar_jobs.layout import BENCHMARK, HELDOUT, TRAIN, candidates_key, questions_key, split_shard
from mmar_jobs.prompt import render
from mmar_jobs.recipes import PromptRecipe
from mmar_jobs.records import Candidate, Finish, Question
from mmar_jobs.stages.answering import OPENS_THINKING
from mmar_jobs.store import Store, open_store

NUM_DRAWS: Final = 16
RUN_ID: Final = "bench"
_QUESTIONS_PER_SHARD: Final = 32
# 130 words, as long as the thinking of a real answer to a short question.
_TRACE: Final = (
    "I hear a low tone, then a buzz that lasts longer than the tone did before it ends. " * 8
)


@dataclass(frozen=True, slots=True)
class FilterBench:
    """How many candidates, 16 a question, and how often."""

    num_candidates: int = 50_000
    repeats: int = 3


def run_filter_bench(bench: FilterBench, environment: Environment) -> Iterator[Measurement]:
    """Candidates a second of wall time with the start of Python, and peak memory."""
    spent = []
    for _ in range(bench.repeats):
        with tempfile.TemporaryDirectory(prefix="mmar-bench-") as folder:
            write_candidates(open_store(folder), bench.num_candidates // NUM_DRAWS)
            spent.append(run_measured(["filter", "--store", folder, "--run-id", RUN_ID]))
    case: dict[str, Scalar] = {"candidates": bench.num_candidates}
    speeds = tuple(bench.num_candidates / one.wall_s for one in spent)
    yield Measurement(
        "filter/candidates_per_s", "candidates/s", "higher", speeds, case, environment
    )
    peaks = tuple(one.peak_bytes / 1e6 for one in spent)
    yield Measurement("filter/peak_mb", "MB", "lower", peaks, case, environment)


def write_candidates(store: Store, num_questions: int) -> None:
    """Questions, and 16 candidates of each, a third of them right, as the stages would write."""
    questions = [_question(number) for number in range(num_questions)]
    draft = _begun(store, questions_key(RUN_ID), "ingest")
    benchmark = _question(num_questions).model_copy(update={"id": "b", "audio_sha256": "b" * 64})
    splits = {TRAIN: questions, HELDOUT: [], BENCHMARK: [benchmark]}
    for split, rows in splits.items():
        draft.write_records(split_shard(split), rows)
    _finish(draft, [split_shard(split) for split in splits])
    draft = _begun(store, candidates_key(RUN_ID, 1), "generate")
    names = []
    for start in range(0, len(questions), _QUESTIONS_PER_SHARD):
        part = questions[start : start + _QUESTIONS_PER_SHARD]
        lines = [line for i, question in enumerate(part, start) for line in _lines(question, i)]
        names.append(f"part-{start:07d}.jsonl.gz")
        data = gzip.compress("".join(f"{line}\n" for line in lines).encode(), 1)
        draft.write_bytes(names[-1], data, num_records=len(lines))
    _finish(draft, names, **{OPENS_THINKING: False})


def _question(number: int) -> Question:
    return Question(
        id=f"q{number:06d}",
        audio=f"audio/{number}.wav",
        text="How many beeps are there?",
        choices=("one", "two", "three"),
        answer="one",
        category="Signal",
        audio_sha256=f"{number:064d}",
        audio_s=1.0,
    )


def _lines(question: Question, number: int) -> list[str]:
    """JSON lines of a question's candidates; pydantic for each would be slower than the filter."""
    first = Candidate(
        question_id=question.id,
        draw=0,
        completion="",
        thinking="",
        answer=None,
        finish=Finish.STOP,
        num_tokens=180,
        logprob_sum=-60.0,
        audio_tokens=num_audio_tokens(round(question.audio_s * SAMPLE_RATE_HZ)),
        prompt_hash=render(question, PromptRecipe().version).hash,
        model_hash="m" * 64,
        seed=0,
    )
    row = first.model_dump(mode="json")
    lines = []
    for draw in range(NUM_DRAWS):
        answer = question.choices[(draw * 7 + number) % 3]
        thinking = f"{_TRACE}{number} {draw}"
        completion = f"<think>\n{thinking}\n</think>\n\n{answer}"
        row |= {"draw": draw, "answer": answer, "thinking": thinking, "completion": completion}
        lines.append(json.dumps(row))
    return lines


def _begun(store: Store, key: str, stage: str) -> Draft:
    draft = begin(store, key, stage=stage, recipe={}, inputs={})
    assert not isinstance(draft, Artifact), "the folder is new"
    return draft


def _finish(draft: Draft, names: Sequence[str], **metrics: Any) -> None:
    draft.finish(list(names), counts={}, metrics=metrics, placement={}, cost={})
