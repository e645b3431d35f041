"""The GPUs of this machine by nvidia-smi: which there are, and their utilization over time.

Not here: torch, whose look at a GPU takes memory of it. Utilization is NVIDIA's: the share of time
in which any kernel ran, however little of the GPU it used.
"""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean
from typing import IO, Final, Self

_SAMPLE_MS: Final = 200


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU; `index` is nvidia-smi's, by PCI bus."""

    index: str
    uuid: str
    name: str
    driver: str
    memory_gib: float


def visible_gpus() -> list[Gpu]:
    """Those that CUDA_VISIBLE_DEVICES leaves, in its order; none without nvidia-smi.

    Nor any whose memory nvidia-smi does not know.
    """
    found: list[Gpu] = []
    for line in ask_nvidia_smi("index,uuid,name,driver_version,memory.total"):
        with suppress(ValueError):  # [N/A], or a message instead of a row
            *words, memory_mib = (part.strip() for part in line.split(","))
            index, uuid, name, driver = words
            found.append(Gpu(index, uuid, name, driver, float(memory_mib) / 1024))
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return found
    parts = [part.strip() for part in wanted.split(",") if part.strip()]
    return [gpu for part in parts for gpu in found if gpu.index == part or _names(part, gpu)]


def ask_nvidia_smi(fields: str) -> list[str]:
    """A line of these fields for each GPU of the machine; none without nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return []
    done = subprocess.run(_query(fields), capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.strip().splitlines()


def _names(part: str, gpu: Gpu) -> bool:
    """CUDA takes the beginning of a UUID for it."""
    return part.startswith("GPU-") and gpu.uuid.startswith(part)


def names_of(gpus: Sequence[Gpu]) -> str:
    """As a figure names its device: the GPU's name, and how many where there are several."""
    names = ", ".join(dict.fromkeys(gpu.name for gpu in gpus))
    return f"{len(gpus)} x {names}" if len(gpus) > 1 else names


class GpuUtilization:
    """Samples the utilization of GPUs five times a second; use as a context."""

    def __init__(self, gpus: Sequence[Gpu]) -> None:
        self._indices = {gpu.index for gpu in gpus}
        self._samples: list[tuple[float, float]] = []

    def __enter__(self) -> Self:
        command = [*_query("index,utilization.gpu"), "-lms", str(_SAMPLE_MS)]
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

    def mean(self, since_s: float, until_s: float) -> float | None:
        """Of all these GPUs between two times of time.monotonic, 0 to 1; None without a sample.

        The last samples before, where there are none between.
        """
        until = [(at_s, share) for at_s, share in self._samples if at_s <= until_s]
        found = [share for at_s, share in until if at_s >= since_s]
        found = found or [share for _, share in until[-len(self._indices) :]]
        return fmean(found) if found else None

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            index, _, percent = line.partition(",")
            with suppress(ValueError):  # [N/A]
                if index.strip() in self._indices:
                    self._samples.append((time.monotonic(), float(percent) / 100))


def _query(fields: str) -> list[str]:
    return ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
