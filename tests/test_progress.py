"""What a pod's log says of progress."""

import pytest
import structlog
from structlog.testing import capture_logs

from mmar_jobs.progress import lines


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, seconds, in its only item."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_a_rate_is_of_this_process(clock: list[float]) -> None:
    """What was done before a restart is counted as done, and not as done in no time."""
    with capture_logs() as logs, lines(structlog.get_logger())("generate", 1000) as advance:
        advance(600)
        for _ in range(4):
            clock[0] += 4
            advance(20)
    said = {"label": "generate", "done": 660, "total": 1000, "per_s": 5.0}
    assert [said | {"event": "progress", "log_level": "info"}] == logs


def test_short_work_says_nothing(clock: list[float]) -> None:
    """No line before ten seconds have passed, however often it moves."""
    with capture_logs() as logs, lines(structlog.get_logger())("filter", 50) as advance:
        for _ in range(50):
            clock[0] += 0.19
            advance(1)
    assert [] == logs
