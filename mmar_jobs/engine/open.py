"""Opening the engine that the settings ask for; what it needs is imported only then.

Not here: the engines.
"""

from pathlib import Path

from mmar_jobs import settings
from mmar_jobs.engine import Engine
from mmar_jobs.recipes import EngineSettings


def open_engine(base: Path, adapter: Path | None, chosen: EngineSettings) -> Engine:
    """An engine that answers with a base folder and an adapter folder, or without one."""
    if chosen.servers:
        from mmar_jobs.engine.server import open_server_engine  # noqa: PLC0415 - transformers

        return open_server_engine(base, adapter, chosen, key=settings.server_key())
    if chosen.backend == "vllm":
        from mmar_jobs.engine.offline import open_offline_engine  # noqa: PLC0415 - vLLM, torch

        return open_offline_engine(base, adapter, chosen)
    from mmar_jobs.engine.local import open_local_engine  # noqa: PLC0415 - torch

    return open_local_engine(base, adapter, chosen)
