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
from typing import Final, TypeAlias

import httpx2

from mmar_jobs.bench.gpus import Gpu
from mmar_jobs.engine.serving import Layout, Node, Shape, Workload, lay_out, spread
from mmar_jobs.errors import MmarError, SettingsError, TryAgain
from mmar_jobs.launch import free_port

_READY_S: Final = 1800.0
_POLL_S: Final = 0.5
_END_S: Final = 20.0
_LAST_WORDS: Final = 300
_REFUSED: Final = 2  # argparse's exit code
_STOPS: Final = (signal.SIGINT, signal.SIGTERM)

_Process: TypeAlias = "subprocess.Popen[bytes]"


def layout_of(
    shape: Shape, gpus: Sequence[Gpu], workload: Workload, tensor_parallel: int
) -> Layout:
    """As serve-args lays out, or servers of `tensor_parallel` GPUs where that is not 0.

    SettingsError where heads do not split so, or servers of that size leave GPUs over.
    """
    node = Node(len(gpus), min(gpu.memory_gib for gpu in gpus))
    layout = lay_out(shape, node, workload)
    if tensor_parallel:
        sizes = [size for size in shape.splits if len(gpus) % size == 0]
        if tensor_parallel not in sizes:
            raise SettingsError(
                f"--tensor-parallel {tensor_parallel}: this model on {len(gpus)} GPUs takes "
                f"{' or '.join(map(str, sizes))}"
            )
        layout = spread(shape, node, workload, tensor_parallel)
    if layout.num_servers * layout.tensor_parallel != len(gpus):
        raise SettingsError(
            f"--gpus {len(gpus)}: servers over {layout.tensor_parallel} GPUs each leave some over, "
            "which would be measured as idle: give a multiple"
        )
    return layout


@contextmanager
def started_servers(
    layout: Layout, args: Sequence[str], gpus: Sequence[Gpu]
) -> Iterator[tuple[str, ...]]:
    """The addresses of servers that answer; they end with the block, however that ends but SIGKILL.

    SettingsError where vLLM is not installed or refuses its options, TryAgain where a server ends
    before it answers. Their logs are kept where the block does not end well.
    """
    if find_spec("vllm") is None:
        raise SettingsError(
            "--gpus: vLLM is not installed here: run in the image `serve`, or give --servers"
        )
    logs = Path(tempfile.mkdtemp(prefix="mmar-vllm-"))
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    begun: list[_Process] = []
    urls: list[str] = []
    try:
        ports: set[int] = set()
        while len(ports) < layout.num_servers:
            ports.add(free_port())
        for number, port in enumerate(sorted(ports)):
            first = number * layout.tensor_parallel
            own = gpus[first : first + layout.tensor_parallel]
            with _log(logs, number).open("wb") as log:
                begun.append(_start(args, port, own, log.fileno()))
            urls.append(f"http://127.0.0.1:{port}")
        _wait(urls, begun, logs)
        yield tuple(urls)
    except MmarError as error:
        raise type(error)(f"{error} (servers' logs: {logs})") from None
    finally:
        _end(begun)
        signal.signal(signal.SIGTERM, before)
    shutil.rmtree(logs)


def _log(logs: Path, number: int) -> Path:
    return logs / f"server-{number}.log"


def _start(args: Sequence[str], port: int, gpus: Sequence[Gpu], log: int) -> _Process:
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", *args]
    visible = ",".join(gpu.index for gpu in gpus)
    return subprocess.Popen(  # noqa: S603 - our own arguments
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        env=os.environ | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": visible},
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def _wait(urls: Sequence[str], begun: Sequence[_Process], logs: Path) -> None:
    end_s = time.monotonic() + _READY_S
    silent = list(urls)
    with httpx2.Client(trust_env=False, timeout=5) as client:
        while silent := [url for url in silent if not _answers(client, url)]:
            for number, process in enumerate(begun):
                if process.poll() is not None:
                    raise _ended(process.returncode, _last_words(_log(logs, number)))
            if time.monotonic() > end_s:
                raise TryAgain(f"{silent[0]} did not answer for {_READY_S:.0f} s")
            time.sleep(_POLL_S)


def _ended(code: int, last_words: str) -> MmarError:
    if code == _REFUSED:
        return SettingsError(f"vLLM refuses its options ({last_words}): correct --vllm-args")
    return TryAgain(f"a server ended before it answered, with {code} ({last_words})")


def _answers(client: httpx2.Client, url: str) -> bool:
    try:
        return client.get(f"{url}/health").status_code == 200
    except httpx2.TransportError:
        return False


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][-_LAST_WORDS:] if lines else "without a word"


def _end(begun: Sequence[_Process]) -> None:
    """End servers and what they began; what has not ended after 20 s is killed.

    Asking again meanwhile changes nothing, or a GPU's memory would stay taken.
    """
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _STOPS}
    try:
        for process in begun:
            process.terminate()
        end_s = time.monotonic() + _END_S
        for process in begun:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end_s - time.monotonic()))
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
