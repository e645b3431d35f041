"""Tests of where artifacts lie and of which model follows which."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from mmar_jobs import layout
from mmar_jobs.artifact import Artifact, Draft, begin
from mmar_jobs.errors import DataError, GateError
from mmar_jobs.layout import ADAPTER_WEIGHTS, VERDICT
from mmar_jobs.lineage import as_record, best_model, check_base, child_of, last_verdict, parent_of
from mmar_jobs.manifest import canonical_json, sha256
from mmar_jobs.store import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return open_store(str(tmp_path / "store"))


def all_keys(run_id: str, iteration: int) -> list[str]:
    """Every key that a run uses."""
    return [
        layout.questions_key(run_id),
        layout.candidates_key(run_id, iteration),
        layout.muted_key(run_id, iteration),
        layout.examples_key(run_id, iteration),
        layout.adapter_key(run_id, iteration),
        layout.checkpoint_key(run_id, iteration),
        layout.answers_key(run_id, "0" * 64),
        layout.answers_key(run_id, "0" * 64, muted=True),
        layout.verdict_key(run_id, iteration),
        layout.predictions_key(run_id, iteration),
        layout.submission_key(run_id, iteration),
        layout.estimate_key(run_id),
        layout.report_key(run_id),
    ]


def test_keys_never_meet() -> None:
    """No artifact lies within another one, of the same run or another."""
    folders = [
        f"{key}/"
        for run_id in ("a", "a-1")
        for iteration in (1, 11)
        for key in all_keys(run_id, iteration)
    ]
    unique = sorted(set(folders))
    assert 2 * (5 + 2 * 8) == len(unique)
    assert not [b for a, b in itertools.pairwise(unique) if b.startswith(a)]


def test_keys_lie_within_their_run() -> None:
    """The lease of a run covers all that the run writes."""
    assert all(key.startswith(f"{layout.run_key('r')}/") for key in all_keys("r", 1))


def test_embeddings_lie_outside_of_all_runs() -> None:
    """All runs share them, so no run's lease covers them."""
    key = layout.clip_embeds_key("0" * 64)
    assert not key.startswith("runs/")
    assert key != layout.clip_embeds_key("1" * 64)


def make(store: Store, key: str, *, stage: str, files: dict[str, bytes]) -> Artifact:
    """A finished artifact of some files."""
    draft = begin(store, key, stage=stage, recipe={"base_digest": "b" * 64}, inputs={})
    assert isinstance(draft, Draft)
    for name, data in files.items():
        draft.write_bytes(name, data)
    return draft.finish(list(files), counts={}, metrics={}, placement={}, cost={})


def evaluated(store: Store, iteration: int, *, next_iteration: int) -> None:
    """An iteration with an adapter and a verdict."""
    weights = f"weights {iteration}".encode()
    make(store, layout.adapter_key("r", iteration), stage="train", files={ADAPTER_WEIGHTS: weights})
    content: dict[str, Any] = {"next_iteration": next_iteration}
    files = {VERDICT: canonical_json(content)}
    make(store, layout.verdict_key("r", iteration), stage="evaluate", files=files)


def test_first_parent_is_the_base(store: Store) -> None:
    """Before any verdict the base is parent and best model."""
    parent = parent_of(store, "r", 1)
    assert (0, None) == (parent.iteration, parent.adapter)
    assert (parent, None) == best_model(store, "r")
    assert last_verdict(store, "r") is None
    assert {"name": "base", "iteration": 0} == {
        key: as_record(parent, "r", "b" * 64)[key] for key in ("name", "iteration")
    }


def test_parent_is_the_last_promoted(store: Store) -> None:
    """Iteration 1 was promoted, 2 was not: 3 starts from 1."""
    evaluated(store, 1, next_iteration=1)
    evaluated(store, 2, next_iteration=1)
    assert 1 == parent_of(store, "r", 2).iteration
    assert 1 == parent_of(store, "r", 3).iteration
    best, verdict = best_model(store, "r")
    assert (1, sha256(b"weights 1")) == (best.iteration, best.adapter_digest)
    assert verdict is not None
    assert layout.verdict_key("r", 2) == verdict.key


def test_base_stays_when_nothing_is_promoted(store: Store) -> None:
    """A refused child is never a parent."""
    evaluated(store, 1, next_iteration=0)
    assert 0 == parent_of(store, "r", 2).iteration
    assert 0 == best_model(store, "r")[0].iteration


def test_models_are_named_by_run_iteration_and_digest(store: Store) -> None:
    """A name can never be that of another model."""
    evaluated(store, 1, next_iteration=1)
    child = child_of(store, "r", 1)
    assert f"r-i1-{sha256(b'weights 1')[:8]}" == child.name("r")
    assert child.identity("b" * 64).hash == as_record(child, "r", "b" * 64)["hash"]


def test_missing_link_names_the_stage_to_run(store: Store) -> None:
    """A later iteration cannot start before the verdict of the one before."""
    with pytest.raises(DataError, match="run the evaluate stage first"):
        parent_of(store, "r", 2)
    with pytest.raises(DataError, match="run the train stage first"):
        child_of(store, "r", 1)


def test_other_base_is_refused(store: Store) -> None:
    """An adapter belongs to one base."""
    evaluated(store, 1, next_iteration=1)
    adapter = child_of(store, "r", 1).adapter
    assert adapter is not None
    check_base(adapter, "b" * 64)
    with pytest.raises(GateError, match="was made with base model bbbbbbbbbbbb"):
        check_base(adapter, "c" * 64)


def test_each_split_is_one_shard() -> None:
    """A split's shard is named after it."""
    assert "heldout.jsonl.gz" == layout.split_shard(layout.HELDOUT)
