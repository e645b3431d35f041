"""Tests of timing pods: from asking until ready, and nothing left behind."""

import threading
from dataclasses import dataclass, field, replace

import pytest

from mmar_jobs.bench.pod_start import PodStartBench, run_pod_start_bench
from mmar_jobs.errors import TryAgain
from tests.bench.figures import HERE
from tests.cluster.fake_api import FakeApi, Object, serving

BENCH = PodStartBench("image@sha256:0", "m7i.2xlarge", 2)
PAUSE_S = 0.2


@dataclass
class Namespace(FakeApi):
    """A namespace whose kubelet says `status` of a new pod after a while."""

    status: Object = field(default_factory=dict)

    def put(self, plural: str, thing: Object) -> Object:
        """As an API server, and then the kubelet."""
        made = super().put(plural, thing)
        if not made["status"] and self.status:
            threading.Timer(PAUSE_S, self.put, (plural, made | {"status": self.status})).start()
        return made


def test_the_first_pod_does_not_count() -> None:
    """Its image was pulled; figures belong to the nodes and not to who asks."""
    api = Namespace(status={"conditions": [{"type": "Ready", "status": "True"}]})
    with serving(api) as cluster:
        [figure] = run_pod_start_bench(BENCH, cluster, HERE)
    assert 3 == sum(request.startswith("POST pods") for request in api.requests)
    assert 2 == len(figure.values)
    assert all(PAUSE_S <= value < 5 for value in figure.values)
    assert "nodes m7i.2xlarge" == figure.environment.device
    assert not api.objects["pods"]


def test_a_pod_that_does_not_start_is_given_up() -> None:
    """And deleted; the image is named, for that is what is missing most often."""
    api, impatient = Namespace(), replace(BENCH, deadline_s=0.1)
    with serving(api) as cluster, pytest.raises(TryAgain, match="is image@sha256:0 there"):
        list(run_pod_start_bench(impatient, cluster, HERE))
    assert not api.objects["pods"]
