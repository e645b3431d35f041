"""Tests that filter streams: time and memory for many candidates, in a process of its own."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmar_jobs.artifact import Draft, begin, find_artifact
from mmar_jobs.layout import (
    BENCHMARK,
    HELDOUT,
    TRAIN,
    candidates_key,
    examples_key,
    questions_key,
    split_shard,
)
from mmar_jobs.records import Question
from mmar_jobs.stages.answering import OPENS_THINKING
from mmar_jobs.store import Store, open_store
from tests.fakes import make_candidate, make_question, think

NUM_DRAWS = 16
QUESTIONS_PER_SHARD = 32
# 130 words, as long as the thinking of a real answer to a short question.
TRACE = "I hear a low tone, then a buzz that lasts longer than the tone did before it ends. " * 8

FILTER = """
import json, sys
from mmar_jobs.__main__ import main
from tests.spent import cpu_s, peak_bytes
sys.argv = ["mmar-jobs", "filter", "--store", sys.argv[1], "--run-id", "r"]
code = main()
print(json.dumps([code, cpu_s(), peak_bytes() / 1e6]))
"""


def begun(store: Store, key: str, stage: str) -> Draft:
    """A new artifact."""
    draft = begin(store, key, stage=stage, recipe={}, inputs={})
    assert isinstance(draft, Draft)
    return draft


def finish(draft: Draft, names: list[str], **metrics: Any) -> None:
    """Finish it."""
    draft.finish(names, counts={}, metrics=metrics, placement={}, cost={})


def write_questions(store: Store, count: int) -> list[Question]:
    """Training questions, each about a clip of its own."""
    questions = [make_question(f"q{i:06d}", audio_sha256=f"{i:064d}") for i in range(count)]
    draft = begun(store, questions_key("r"), "ingest")
    splits = {TRAIN: questions, HELDOUT: [], BENCHMARK: [make_question("b", audio_sha256="b" * 64)]}
    for split, rows in splits.items():
        draft.write_records(split_shard(split), rows)
    finish(draft, [split_shard(split) for split in splits])
    return questions


def candidate_lines(question: Question, number: int) -> list[str]:
    """JSON lines of a question's candidates, a third of them right; pydantic would be slower."""
    row = make_candidate(question).model_dump(mode="json")
    lines = []
    for draw in range(NUM_DRAWS):
        answer = question.choices[(draw * 7 + number) % 3]
        thinking = f"{TRACE}{number} {draw}"
        row |= {"draw": draw, "answer": answer, "thinking": thinking}
        row["completion"] = think(answer, thinking)
        lines.append(json.dumps(row))
    return lines


def write_candidates(store: Store, questions: list[Question]) -> None:
    """Sixteen candidates a question, in shards as generate makes them."""
    draft = begun(store, candidates_key("r", 1), "generate")
    names = []
    for start in range(0, len(questions), QUESTIONS_PER_SHARD):
        part = questions[start : start + QUESTIONS_PER_SHARD]
        lines = [line for i, q in enumerate(part, start) for line in candidate_lines(q, i)]
        names.append(f"part-{start:07d}.jsonl.gz")
        data = gzip.compress("".join(f"{line}\n" for line in lines).encode(), 1)
        draft.write_bytes(names[-1], data, num_records=len(lines))
    finish(draft, names, **{OPENS_THINKING: False})


@pytest.mark.parametrize(
    ("num_candidates", "max_s", "max_mb"),
    [
        # Both bounds at a twentieth, beside 1.2 s and 60 MB for Python and its imports.
        pytest.param(50_000, 1.2 + 60 / 20, 60 + 500 / 20, id="50k"),
        pytest.param(1_000_000, 60, 500, id="1M", marks=pytest.mark.slow),
    ],
)
def test_filter_streams(tmp_path: Path, num_candidates: int, max_s: float, max_mb: float) -> None:
    """A million candidates in under 60 s and 500 MB."""
    store = open_store(str(tmp_path))
    write_candidates(store, write_questions(store, num_candidates // NUM_DRAWS))
    done = subprocess.run(
        [sys.executable, "-c", FILTER, str(tmp_path)], capture_output=True, text=True, check=True
    )
    code, seconds, resident_mb = json.loads(done.stdout.splitlines()[-1])
    examples = find_artifact(store, examples_key("r", 1))
    assert examples is not None
    assert 0 == code
    assert num_candidates == examples.manifest.counts["num_candidates"]
    assert 3 * num_candidates // NUM_DRAWS == examples.manifest.counts["num_examples"]
    assert seconds < max_s
    assert resident_mb < max_mb
