"""vLLM's interface over the tiny model, for a pod: `serving_pod FOLDER PORT`.

Each question is told in a line and answered a second later, so a test can end the pod in between.
"""

import signal
import sys
from pathlib import Path

from mmar_jobs.engine.local import open_local_engine
from mmar_jobs.recipes import EngineSettings
from tests.engine.faults import Fault
from tests.engine.loopback import serve


def _slowly(number: int) -> Fault:
    sys.stdout.write(f"asked {number}\n")
    sys.stdout.flush()
    return Fault(stall_s=1)


def main() -> None:
    """Serve until a signal ends it."""
    engine = open_local_engine(Path(sys.argv[1]), None, EngineSettings(threads=1))
    with serve(engine, script=_slowly, address=("", int(sys.argv[2]))):
        signal.pause()


if __name__ == "__main__":
    main()
