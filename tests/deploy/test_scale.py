"""Tests of what many runs at once ask of a cluster: the figures that the page gives, and limits."""

from tests.deploy import scale
from tests.deploy.manifests import ROOT
from tests.deploy.workflows import arguments, library


def test_the_page_has_the_table_that_is_computed() -> None:
    """`python -m tests.deploy.scale` prints it anew."""
    assert scale.table() in (ROOT / "docs/cluster.md").read_text(encoding="utf-8")


def test_a_workflow_stays_below_what_argo_keeps_as_it_is() -> None:
    """Even where each pod is tried as often as its retry strategy allows."""
    worst = scale.trace(tries=6)
    assert {6} == {
        1 + int(leaf.body["retryStrategy"]["limit"])
        for leaf in scale.templates().values()
        if leaf.is_leaf and "retryStrategy" in leaf.body and leaf.home.startswith("mmar-jobs-s")
    }
    assert scale.status_bytes(scale.trace()) < scale.status_bytes(worst) < scale.STATUS_LIMIT


def test_of_two_sizes_the_deadlines_bear_the_smaller() -> None:
    """The page says that a million questions want turns of fewer: one turn outlasts its Job."""
    small, large = map(scale.longest_generate_s, scale.SIZES)
    assert small < scale.deadline_s() < large
    steps = library()["mmar-jobs-iteration"]["spec"]["templates"][0]["steps"]
    lease_s = float(arguments(steps[0][0])["lease-s"])
    assert small < lease_s
