"""Reading the machine: device, driver, packages, commit.

Not here: what of it makes two figures comparable (result.py).
"""

import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import torch

from mmar_jobs.bench.gpus import ask_nvidia_smi
from mmar_jobs.bench.result import Environment

_PACKAGES: Final = frozenset(
    {"triton", "transformers", "peft", "bitsandbytes", "flash-attn", "safetensors", "numpy"}
)
_UNKNOWN: Final = "unknown"
_SOURCE: Final = Path(__file__).resolve()


def read_environment(
    device: torch.device, *, commit: str | None, image: str | None = None
) -> Environment:
    """Describe this machine, now; `commit` overrides what git says about the source tree."""
    return Environment(
        device=_device_name(device),
        driver=_driver(device),
        python=platform.python_version(),
        packages={
            "torch": torch.__version__,  # says for which CUDA, unlike the distribution's
            **{name: found for name in sorted(_PACKAGES) if (found := _version(name))},
        },
        commit=commit or _commit(),
        image=image or "",
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


def _driver(device: torch.device) -> str:
    if device.type != "cuda":
        return "none"
    lines = ask_nvidia_smi("driver_version")
    return lines[0] if lines else _UNKNOWN


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    """Commit of the source tree, "+" where it has changes; unknown outside of one."""
    git = shutil.which("git")
    if git is None:
        return _UNKNOWN

    def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [git, "-C", str(_SOURCE.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed

    # An installed package may lie inside somebody else's repository.
    if ask("ls-files", "--error-unmatch", _SOURCE.name).returncode != 0:
        return _UNKNOWN
    changed = ask("status", "--porcelain", "--untracked-files=no", "..").stdout.strip()
    return ask("rev-parse", "HEAD").stdout.strip() + ("+" if changed else "")
