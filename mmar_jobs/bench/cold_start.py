"""The bench of what every command pays before it works: Python, imports, settings.

Not here: what a pod pays before that (pod_start.py).
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from mmar_jobs.bench.child import timed
from mmar_jobs.bench.result import Environment, Measurement

_CLI: Final = (sys.executable, "-m", "mmar_jobs")
_MEASURED: Final[Mapping[str, Sequence[str]]] = {
    "help_s": (*_CLI, "--help"),
    "stage_help_s": (*_CLI, "train", "--help"),
    "torch_s": (sys.executable, "-c", "import mmar_jobs.qlora.trainer"),
}


def run_cold_start_bench(repeats: int, environment: Environment) -> Iterator[Measurement]:
    """Seconds from start to exit, after one that fills the caches of bytecode and disk."""
    for name, command in _MEASURED.items():
        timed(command)
        values = tuple(timed(command) for _ in range(repeats))
        yield Measurement(f"cold_start/{name}", "s", "lower", values, {}, environment)
