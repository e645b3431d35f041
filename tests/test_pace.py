"""The number of questions under way follows what the server says of itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmar_jobs.engine.pace import FIRST_LIMIT, MAX_LIMIT, Load, next_limit, parse_load

METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 12.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
vllm:num_requests_waiting{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 3.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
vllm:num_preemptions_created{engine="0",model_name="m"} 1.795866184870083e+09
"""


def test_gauges_of_all_engines_count() -> None:
    """Draws add up, the fullest cache counts, look-alikes do not."""
    assert Load(running=16, waiting=3, kv_use=0.75) == parse_load(METRICS)


def test_other_metrics_are_an_error() -> None:
    """A server that is no vLLM is not taken for an idle one."""
    with pytest.raises(ValueError, match="not the metrics"):
        parse_load("process_start_time_seconds 1.7e9\n")


def test_it_grows_while_the_queue_is_empty() -> None:
    """From a batch of 16 draws each to hundreds in a few polls, and no further than it may."""
    limit, seen = FIRST_LIMIT, []
    for _ in range(7):
        limit = next_limit(limit, limit, Load(running=limit * 16, waiting=0, kv_use=0.5))
        seen.append(limit)
    assert [32, 64, 128, 256, 512, 512, MAX_LIMIT] == seen


@pytest.mark.parametrize(
    ("under_way", "load"),
    [
        (4, Load(running=64, waiting=0, kv_use=0.5)),
        (8, Load(running=64, waiting=0, kv_use=0.97)),
        (8, Load(running=100, waiting=28, kv_use=0.9)),
    ],
    ids=["not-used-up", "cache-full", "short-queue"],
)
def test_it_stays_where_more_would_not_help(under_way: int, load: Load) -> None:
    """When the limit is not what holds back, or the server is full, it is right as it is."""
    assert 8 == next_limit(8, under_way, load)


def test_it_shrinks_to_what_runs() -> None:
    """When far more waits than runs, questions are held back for other servers."""
    assert 12 == next_limit(64, 64, Load(running=128, waiting=896, kv_use=0.99))


@given(
    st.integers(1, MAX_LIMIT),
    st.integers(0, MAX_LIMIT),
    st.builds(Load, st.integers(0, 9999), st.integers(0, 9999), st.floats(0, 1)),
)
def test_it_never_leaves_its_bounds(limit: int, under_way: int, load: Load) -> None:
    """At least one question may always be asked."""
    assert 1 <= next_limit(limit, under_way, load) <= MAX_LIMIT
