"""The GPUs of this machine by nvidia-smi: which there are, and how busy they were when.

Not here: torch, whose look at a GPU takes memory of it. What counts as busy is NVIDIA's: the share
of time in which any kernel ran, however little of the GPU it used.
"""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import IO, Final, Self

_SAMPLE_MS: Final = 200
_SAMPLED: Final = "index,utilization.gpu"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU; `index` is nvidia-smi's."""

    index: str
    name: str
    driver: str
    memory_gib: float


def visible_gpus() -> list[Gpu]:
    """Those that CUDA_VISIBLE_DEVICES leaves, in its order; none without nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = _query("index,name,driver_version,memory.total")
    done = subprocess.run(query, capture_output=True, text=True, check=False)  # noqa: S603 - fixed
    if done.returncode != 0:
        return []
    found: dict[str, Gpu] = {}
    for line in done.stdout.splitlines():
        index, name, driver, memory_mib = (part.strip() for part in line.split(","))
        found[index] = Gpu(index, name, driver, float(memory_mib) / 1024)
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return list(found.values())
    return [found[index] for part in wanted.split(",") if (index := part.strip()) in found]


def names_of(gpus: Sequence[Gpu]) -> str:
    """As a figure names its device: the GPU's name, and how many where there are several."""
    names = ", ".join(dict.fromkeys(gpu.name for gpu in gpus))
    return f"{len(gpus)} x {names}" if len(gpus) > 1 else names


class GpuUse:
    """Samples five times a second how busy GPUs are; use as a context."""

    def __init__(self, gpus: Iterable[Gpu]) -> None:
        self._indices = {gpu.index for gpu in gpus}
        self._samples: list[tuple[float, float]] = []

    def __enter__(self) -> Self:
        command = [*_query(_SAMPLED), "-lms", str(_SAMPLE_MS)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603
        assert self._process.stdout is not None
        self._lines = self._process.stdout
        self._thread = threading.Thread(target=self._read, args=(self._lines,))
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._thread.join()
        self._lines.close()

    def share(self, since_s: float, until_s: float) -> float | None:
        """Mean share of time in which a GPU was busy, by time.monotonic; None without a sample.

        The last samples before, where there are none between.
        """
        until = [(at_s, share) for at_s, share in self._samples if at_s <= until_s]
        found = [share for at_s, share in until if at_s >= since_s]
        found = found or [share for _, share in until[-len(self._indices) :]]
        return fmean(found) if found else None

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            index, _, percent = line.partition(",")
            if index.strip() in self._indices:
                self._samples.append((time.monotonic(), float(percent) / 100))


def _query(fields: str) -> list[str]:
    return ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
