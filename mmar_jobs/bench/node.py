"""vLLM servers on this machine's GPUs, for as long as a bench asks them.

Not here: their options (engine/serving.py), what is asked (generate.py).
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import httpx2

from mmar_jobs.bench.gpus import Gpu
from mmar_jobs.engine.serving import Layout, Node, Shape, Workload, lay_out, spread
from mmar_jobs.errors import SettingsError
from mmar_jobs.launch import free_port

READY_S: Final = 1800.0
_POLL_S: Final = 0.5
_END_S: Final = 20.0
_LAST_WORDS: Final = 300


def layout_of(
    shape: Shape, gpus: Sequence[Gpu], workload: Workload, tensor_parallel: int
) -> Layout:
    """As serve-args lays out, or servers of `tensor_parallel` GPUs where that is not 0.

    SettingsError where heads do not split so, or GPUs are too few.
    """
    node = Node(len(gpus), min(gpu.memory_gib for gpu in gpus))
    if not tensor_parallel:
        return lay_out(shape, node, workload)
    sizes = [size for size in shape.splits if size <= len(gpus)]
    if tensor_parallel not in sizes:
        raise SettingsError(
            f"--tensor-parallel {tensor_parallel}: this model on {len(gpus)} GPUs takes "
            f"{' or '.join(map(str, sizes))}"
        )
    return spread(shape, node, workload, tensor_parallel)


@contextmanager
def serving(layout: Layout, args: Sequence[str], gpus: Sequence[Gpu]) -> Iterator[tuple[str, ...]]:
    """The addresses of servers that answer; they end with the block, also by SIGTERM.

    SettingsError where vLLM is not installed, or a server ends before it answers.
    """
    if find_spec("vllm") is None:
        raise SettingsError(
            "--gpus: vLLM is not installed here: run in the image `serve`, or give --servers"
        )
    logs = Path(tempfile.mkdtemp(prefix="mmar-vllm-"))
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    begun: list[subprocess.Popen[bytes]] = []
    urls: list[str] = []
    try:
        for number in range(layout.num_servers):
            port, first = free_port(), number * layout.tensor_parallel
            own = gpus[first : first + layout.tensor_parallel]
            with (logs / f"server-{number}.log").open("wb") as log:
                begun.append(_start(args, port, own, log.fileno()))
            urls.append(f"http://127.0.0.1:{port}")
        _wait(urls, begun, logs)
        yield tuple(urls)
    finally:
        _end(begun)
        signal.signal(signal.SIGTERM, before)
    shutil.rmtree(logs)


def _start(
    args: Sequence[str], port: int, gpus: Sequence[Gpu], log: int
) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", *args]
    visible = ",".join(gpu.index for gpu in gpus)
    return subprocess.Popen(  # noqa: S603 - our own arguments
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": visible},
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def _wait(urls: Sequence[str], begun: Sequence["subprocess.Popen[bytes]"], logs: Path) -> None:
    end_s = time.monotonic() + READY_S
    with httpx2.Client(trust_env=False, timeout=5) as client:
        for number, (url, process) in enumerate(zip(urls, begun, strict=True)):
            while not _answers(client, url):
                log = logs / f"server-{number}.log"
                if process.poll() is not None:
                    raise SettingsError(
                        f"a server ended before it answered ({_last_words(log)}): see {log}, and "
                        "correct --vllm-args"
                    )
                if time.monotonic() > end_s:
                    raise SettingsError(f"a server did not answer for {READY_S:.0f} s: see {log}")
                time.sleep(_POLL_S)


def _answers(client: httpx2.Client, url: str) -> bool:
    try:
        return client.get(f"{url}/health").status_code == 200
    except httpx2.TransportError:
        return False


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][-_LAST_WORDS:] if lines else "without a word"


def _end(begun: Sequence["subprocess.Popen[bytes]"]) -> None:
    """VLLM's own processes end with their server; what has not after 20 s is killed."""
    for process in begun:
        process.terminate()
    end_s = time.monotonic() + _END_S
    for process in begun:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, end_s - time.monotonic()))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
