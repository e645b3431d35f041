"""The stages of a run; each module's `run` reads artifacts, makes one and returns it.

Not here: their order (loop.py).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmar_jobs.engine import Engine
from mmar_jobs.progress import Tracker
from mmar_jobs.recipes import EngineSettings
from mmar_jobs.store import Store

# Base folder, adapter folder or None, settings. It reads what it needs before it returns, and says
# by digests of its own what it loaded.
OpenEngine = Callable[[Path, Path | None, EngineSettings], Engine]


@dataclass(frozen=True)
class Edges:
    """What the composition root hands to every stage: the outside world, and nothing else."""

    store: Store
    open_engine: OpenEngine
    track: Tracker
    log: Any  # structlog's bound loggers are typed as Any


@contextmanager
def stopwatch(cost: dict[str, float], name: str = "seconds") -> Iterator[None]:
    """Add the wall time of the block to `cost[name]`, seconds."""
    start = time.monotonic()
    try:
        yield
    finally:
        cost[name] = round(cost.get(name, 0.0) + time.monotonic() - start, 3)
