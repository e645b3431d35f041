"""Tests that vLLM itself understands what it is started with."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmar_jobs.artifact import file_sha256
from mmar_jobs.base_model import model_digest
from mmar_jobs.cli import run_command
from mmar_jobs.identity import ModelIdentity
from mmar_jobs.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_key
from mmar_jobs.tiny import tiny_model_folder
from tests.goldens import CHARTS
from tests.serve.job import Job


def parsed(environment: Path, *lines: list[str]) -> list[dict[str, Any]]:
    """What vLLM makes of command lines of `vllm serve`."""
    script = Path(__file__).with_name("parse_options.py")
    result = subprocess.run(
        # -P: the vllm.py beside the script is not the one that it imports.
        [environment / "bin" / "python", "-P", script],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={"HOME": str(environment), "PATH": "/usr/bin:/bin", "VLLM_NO_USAGE_STATS": "1"},
    )
    assert result.returncode == 0, result.stderr[-2000:]
    found: list[dict[str, Any]] = json.loads(result.stdout.splitlines()[-1])
    return found


def test_vllm_knows_every_option_of_the_chart(environment: Path, tmp_path: Path) -> None:
    """With the file that serve-config writes for it, which says model and name."""
    model = tiny_model_folder()
    flags = [f"--model={model}", f"--cache={tmp_path}", f"--output={tmp_path}", "--num-servers=2"]
    assert 0 == run_command("serve-config", flags)
    items = yaml.safe_load_all((CHARTS / "vllm-default.yaml").read_text())
    [server] = [item for item in items if item and item["kind"] == "StatefulSet"]
    lines = [
        [arg.replace("/serve/server-", f"{tmp_path}/server-") for arg in container["args"]]
        for container in server["spec"]["template"]["spec"]["containers"]
    ]
    for index, found in enumerate(parsed(environment, *lines)):
        config = json.loads((tmp_path / f"server-{index}.yaml").read_text())
        expected = {
            "model": str(model),
            "served_model_name": [config["served-model-name"]],
            "tensor_parallel_size": 2,
            "port": 8000 + index,
            "allowed_media_domains": ["none.invalid"],
        }
        assert expected.items() <= found.items()


def test_vllm_knows_the_options_of_an_adapter(
    environment: Path, trained: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    """Base and adapter by names of their own, and a rank that vLLM takes."""
    adapter = trained.store / adapter_key("r", 1)
    flags = [str(tiny_model_folder()), "--adapter", str(adapter), "--json"]
    assert 0 == run_command("serve-args", flags)
    told = json.loads(capsys.readouterr().out)
    [found] = parsed(environment, told["servers"][0]["args"])
    [[name, path]] = found["lora_modules"]
    identity = ModelIdentity(
        base_digest=model_digest(tiny_model_folder()),
        adapter_digest=file_sha256(adapter / ADAPTER_WEIGHTS),
    )
    assert (f"mmar-{identity.hash[:16]}", str(adapter)) == (name, path)
    assert [told["model"]] == found["served_model_name"]
    assert found["max_lora_rank"] >= json.loads((adapter / ADAPTER_CONFIG).read_text())["r"]
