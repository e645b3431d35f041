"""How many questions a server is given at a time, by what it says of itself.

Pure: no connection, no clock. A vLLM server batches what is under way by itself, so the client has
but to keep its queue from running dry: every token that is decoded in a full batch is nearly free.
"""

import math
import re
from dataclasses import dataclass
from typing import Final

# With 16 draws each no more than a server of a large model decodes at a time: no answer counts
# before the canary, which would wait behind all that waits.
FIRST_LIMIT: Final = 16
MAX_LIMIT: Final = 512
_GROWTH: Final = 2
# Questions for each that runs, where more wait than run.
_AHEAD: Final = 1.5
# Above this vLLM begins to preempt running draws, whose tokens so far are then computed again.
_KV_FULL: Final = 0.95
_GAUGE: Final = re.compile(
    r"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc)(?:\{[^}]*\})? (\S+)$",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Load:
    """Draws running and waiting, and the share of the KV cache in use, 0 to 1."""

    running: int
    waiting: int
    kv_use: float

    @property
    def is_idle(self) -> bool:
        """Whether the server has nothing to do."""
        return self.running + self.waiting == 0


def parse_load(metrics: str) -> Load:
    """The load in vLLM's Prometheus text; ValueError where it is missing.

    With several engines in one server their draws add up, and the fullest cache counts.
    """
    found: dict[str, list[float]] = {}
    for name, value in _GAUGE.findall(metrics):
        found.setdefault(name, []).append(float(value))
    if len(found) < 3:
        raise ValueError("not the metrics of a vLLM server")
    return Load(
        running=round(sum(found["num_requests_running"])),
        waiting=round(sum(found["num_requests_waiting"])),
        kv_use=max(found["kv_cache_usage_perc"]),
    )


def next_limit(limit: int, num_under_way: int, load: Load) -> int:
    """How many questions may be under way at one server from now on.

    It grows while the limit is what keeps the queue empty, and shrinks to what runs, plus a little,
    when more draws wait than run: those hold memory and bind questions to this server for nothing.
    """
    if load.waiting == 0:
        if num_under_way < limit or load.kv_use >= _KV_FULL:
            return limit
        return min(MAX_LIMIT, limit * _GROWTH)
    if load.waiting > load.running > 0:
        share = load.running / (load.running + load.waiting)
        return max(1, min(limit, math.ceil(num_under_way * share * _AHEAD)))
    return limit
