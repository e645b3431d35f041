"""The generation bench starts the real vLLM by the options of serve-args, measures and ends it.

On the CPU, which a script in the place of nvidia-smi calls a GPU.
"""

import json
import os
import subprocess
from contextlib import suppress
from pathlib import Path

from mmar_jobs.errors import ExitCode
from mmar_jobs.tiny import tiny_model_folder
from tests.fakes import fake_nvidia_smi
from tests.serve.vllm import ON_CPU, cpu_environment


def test_a_server_of_its_own_is_measured(environment: Path, tmp_path: Path) -> None:
    """The figures are there, each draw has its tokens, and no process is left."""
    fake_nvidia_smi(tmp_path, ["0, GPU-0, a CPU, none, 20480"], ["0, 100"])
    command = [str(environment / "bin/mmar-jobs"), "bench", "generate", "--gpus", "1"]
    asked = ["--model", str(tiny_model_folder()), "--dtype", "float32", "--questions", "6"]
    few = ["--warm-up", "2", "--draws", "4", "--max-tokens", "32", "--clip-s", "1", "--json", "-"]
    options = " ".join((*ON_CPU, "--max-num-seqs", "16", "--api-server-count", "1"))
    done = subprocess.run(
        [*command, *asked, *few, f"--vllm-args={options}"],
        env=cpu_environment() | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "OURS": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == ExitCode.DONE, done.stderr[-3000:]
    figures = {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert "a CPU" == figures["generate/gpu_utilization"]["environment"]["device"]
    assert 24 == figures["generate/output_tokens_per_s"]["detail"]["num_candidates"]
    # What vLLM begins names itself as it likes, but keeps its environment.
    ours = f"OURS={tmp_path}".encode()
    assert not [path for path in Path("/proc").glob("[0-9]*/environ") if ours in _read(path)]


def _read(path: Path) -> bytes:
    with suppress(OSError):  # ended meanwhile
        return path.read_bytes()
    return b""
