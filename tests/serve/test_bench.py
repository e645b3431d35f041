"""The generation bench starts the real vLLM by the options of serve-args, measures and ends it.

On the CPU, which a script in the place of nvidia-smi calls a GPU.
"""

import json
import os
import subprocess
from pathlib import Path

from mmar_jobs.errors import ExitCode
from mmar_jobs.tiny import tiny_model_folder
from tests.serve.vllm import ON_CPU, cpu_environment

_SMI = """\
#!/bin/bash
case "$*" in
  *-lms*) while printf '0, 100\\n'; do sleep 0.1; done ;;
  *) printf '0, a CPU, none, 20480\\n' ;;
esac
"""


def test_a_server_of_its_own_is_measured(environment: Path, tmp_path: Path) -> None:
    """The figures are there, each draw has its tokens, and no process is left."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text(_SMI)
    smi.chmod(0o755)
    command = [str(environment / "bin/mmar-jobs"), "bench", "generate", "--gpus", "1"]
    asked = ["--model", str(tiny_model_folder()), "--dtype", "float32", "--questions", "6"]
    few = ["--warm-up", "2", "--draws", "4", "--max-tokens", "32", "--clip-s", "1", "--json", "-"]
    options = " ".join((*ON_CPU, "--max-num-seqs", "16", "--api-server-count", "1"))
    done = subprocess.run(
        [*command, *asked, *few, f"--vllm-args={options}"],
        env=cpu_environment() | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == ExitCode.DONE, done.stderr[-3000:]
    figures = {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert "a CPU" == figures["generate/gpu_busy"]["environment"]["device"]
    assert 24 == figures["generate/output_tokens_per_s"]["detail"]["num_candidates"]
    ours = ["pgrep", "-f", "vllm.entrypoints.cli.main"]
    left = subprocess.run(ours, check=False, capture_output=True)
    assert b"" == left.stdout
