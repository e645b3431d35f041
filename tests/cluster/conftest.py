"""A namespace that a fake API serves, and a client of it."""

from collections.abc import Iterator

import pytest

from mmar_jobs.cluster.api import Cluster
from tests.cluster.fake_api import FakeApi, serving


@pytest.fixture
def api() -> FakeApi:
    """An empty namespace."""
    return FakeApi()


@pytest.fixture
def cluster(api: FakeApi) -> Iterator[Cluster]:
    """A client of it."""
    with serving(api) as found:
        yield found
