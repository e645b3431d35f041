"""A real vLLM server as a process of its own, started as `mmar-jobs serve-args` says.

Not here: the environment that it is installed in (environment/), the tests.
"""

import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from mmar_jobs.engine.serving import Layout, serve_args
from mmar_jobs.engine.serving_command import served_name
from mmar_jobs.launch import free_port

# What the CPU build wants besides: no graphs. Its worker would be a third process that imports all
# of vLLM, which is most of the start on a slow machine: it works inside the second one.
ON_CPU = (
    "--enforce-eager",
    "--distributed-executor-backend",
    "vllm.v1.executor.uniproc_executor.UniProcExecutor",
)
_LAYOUT = Layout(num_servers=1, tensor_parallel=1, max_num_seqs=64, max_model_len=2048, kv_tokens=0)
_READY_S = 400


@dataclass
class Vllm:
    """One server of the model in `folder`, at `url` while it runs; log and clips lie in `place`."""

    environment: Path
    folder: Path
    place: Path
    num_api_servers: int = 1  # those of serve-args would each import all of vLLM
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.media_dir.mkdir(parents=True)
        self.name = served_name(self.folder)
        self.port = free_port()

    @property
    def media_dir(self) -> Path:
        """A folder that it may read clips from."""
        return self.place / "clips"

    @property
    def log(self) -> Path:
        """What it says."""
        return self.place / "vllm.log"

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it in a session of its own; see wait."""
        args = serve_args(
            _LAYOUT,
            str(self.folder),
            self.name,
            dtype="float32",
            media_dir=str(self.media_dir),
            thinking_budget=True,
        )
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *("nice", "-n", "5", str(self.environment / "bin/vllm"), "serve", *args),
                    *(*ON_CPU, "--host", "127.0.0.1", "--port", str(self.port)),
                    *("--api-server-count", str(self.num_api_servers)),
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=cpu_environment(),
            )

    def wait(self) -> None:
        """Wait until it answers; an AssertionError with the end of its log when it ended first."""
        end_s = time.monotonic() + _READY_S
        while True:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < end_s, self.log.read_text(errors="replace")[-3000:]
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):  # noqa: S310
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(1)

    def kill(self) -> None:
        """Kill -9 all of its processes."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=30)
            self.process = None


def cpu_environment() -> dict[str, str]:
    """The variables of a process that has vLLM in it."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV")
    }
    return kept | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def find_environment() -> Path | None:
    """Where `make test-serve` installed vLLM, or None."""
    told = os.environ.get("VLLM_ENVIRONMENT")
    if not told or shutil.which("vllm", path=str(Path(told) / "bin")) is None:
        return None
    return Path(told)
