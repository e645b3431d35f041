"""Tests that vLLM itself understands what charts/vllm starts it with."""

import json
import subprocess
from pathlib import Path

import yaml

from mmar_jobs.cli import run_command
from mmar_jobs.tiny import tiny_model_folder
from tests.goldens import CHARTS


def test_vllm_knows_every_option_of_the_chart(environment: Path, tmp_path: Path) -> None:
    """With the file that serve-config writes for it, which says model and name."""
    model = tiny_model_folder()
    flags = [f"--model={model}", f"--cache={tmp_path}", f"--output={tmp_path}", "--num-servers=2"]
    assert 0 == run_command("serve-config", flags)
    items = yaml.safe_load_all((CHARTS / "vllm-default.yaml").read_text())
    [server] = [item for item in items if item and item["kind"] == "StatefulSet"]
    for index, container in enumerate(server["spec"]["template"]["spec"]["containers"]):
        config = tmp_path / f"server-{index}.yaml"
        args = [arg.replace(f"/serve/{config.name}", str(config)) for arg in container["args"]]
        script = Path(__file__).with_name("parse_options.py")
        result = subprocess.run(
            # -P: the vllm.py beside the script is not the one that it imports.
            [environment / "bin" / "python", "-P", script, *args],
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
            env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "VLLM_NO_USAGE_STATS": "1"},
        )
        assert result.returncode == 0, result.stderr[-2000:]
        expected = {
            "model": str(model),
            "served_model_name": [json.loads(config.read_text())["served-model-name"]],
            "tensor_parallel_size": 2,
            "port": 8000 + index,
            "allowed_media_domains": ["none.invalid"],
        }
        assert expected == json.loads(result.stdout.splitlines()[-1])
