"""Tests of the store's bench: honest counts, and nothing left behind."""

import pytest

from mmar_jobs.bench.store import StoreBench, run_store_bench
from tests.bench.figures import HERE

from .conftest import Place


def test_speeds_and_requests_are_measured_and_objects_deleted(place: Place) -> None:
    """One value a round; on S3 seven requests an object; the store is empty again."""
    uri = place.fresh_uri()
    bench = StoreBench(uri, place.endpoint_url, object_mb=2, num_objects=3, repeats=2)
    figures = {one.name: one for one in run_store_bench(bench, HERE)}
    for name in ("store/upload_mb_per_s", "store/download_mb_per_s"):
        assert 2 == len(figures[name].values)
        assert min(figures[name].values) > 0
    assert [] == list(place.open(uri).list(""))
    if place.endpoint_url is None:
        assert "store/requests_per_gb" not in figures
    else:
        # Up: look for abandoned parts, put, look at the size; down: look for it, for its digest,
        # for its size, get.
        assert [pytest.approx(7 / 0.002)] * 2 == list(figures["store/requests_per_gb"].values)
