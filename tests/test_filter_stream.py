"""Tests that filter streams: time and memory for many candidates, in a process of its own."""

from pathlib import Path

import pytest

from mmar_jobs.artifact import find_artifact
from mmar_jobs.bench.child import run_measured
from mmar_jobs.bench.filter import NUM_DRAWS, RUN_ID, write_candidates
from mmar_jobs.layout import examples_key
from mmar_jobs.store import open_store


@pytest.mark.parametrize(
    ("num_candidates", "max_s", "max_mb"),
    [
        # Both bounds at a twentieth, beside 1.2 s and 60 MB for Python and its imports.
        pytest.param(50_000, 1.2 + 60 / 20, 60 + 500 / 20, id="50k"),
        pytest.param(1_000_000, 60, 500, id="1M", marks=[pytest.mark.slow, pytest.mark.alone]),
    ],
)
def test_filter_streams(tmp_path: Path, num_candidates: int, max_s: float, max_mb: float) -> None:
    """A million candidates in under 60 s and 500 MB."""
    store = open_store(str(tmp_path))
    write_candidates(store, num_candidates // NUM_DRAWS)
    spent = run_measured(["filter", "--store", str(tmp_path), "--run-id", RUN_ID])
    examples = find_artifact(store, examples_key(RUN_ID, 1))
    assert examples is not None
    assert num_candidates == examples.manifest.counts["num_candidates"]
    assert 3 * num_candidates // NUM_DRAWS == examples.manifest.counts["num_examples"]
    assert spent.cpu_s < max_s
    assert spent.peak_bytes / 1e6 < max_mb
