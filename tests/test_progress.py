"""What a pod's log says of progress."""

from typing import Any

import pytest

from mmar_jobs.progress import lines


class Log:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def info(self, event: str, **facts: Any) -> None:
        """Keep one line."""
        assert event == "progress"
        self.told.append(facts)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, seconds, in its only item."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_a_rate_is_of_this_process(clock: list[float]) -> None:
    """What was done before a restart is counted as done, and not as done in no time."""
    log = Log()
    with lines(log)("generate", 1000) as advance:
        advance(600)
        for _ in range(4):
            clock[0] += 4
            advance(20)
    assert [{"label": "generate", "done": 660, "total": 1000, "per_s": 5.0}] == log.told


def test_short_work_says_nothing(clock: list[float]) -> None:
    """No line before ten seconds have passed, however often it moves."""
    log = Log()
    with lines(log)("filter", 50) as advance:
        for _ in range(50):
            clock[0] += 0.19
            advance(1)
    assert [] == log.told
