"""Rendering the charts with the real Helm, with the values of each case.

Not here: what must hold for what is rendered.
"""

import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import yaml

from tests.deploy.manifests import CHARTS, ROOT, Object

# `make deploy-tools` puts pinned ones there.
_TOOLS = Path.home() / ".cache" / "mmar-jobs" / "deploy" / "bin"
NAMESPACE = "mmar-jobs"
KUBERNETES = "1.34"
EXAMPLES = ROOT / "k8s" / "examples"

# Values by case: (chart, release, arguments of helm).
CASES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    f"{chart}-{where}": (chart, chart, (f"--values={EXAMPLES / where / chart}.yaml",))
    for chart in ("mmar-jobs", "vllm")
    for where in ("eks", "gke", "on-premises")
} | {
    "mmar-jobs-default": ("mmar-jobs", "mmar-jobs", ("--set=store=s3://bucket/prefix",)),
    "mmar-jobs-all": (
        "mmar-jobs",
        "mmar-jobs",
        (
            "--set=store=s3://bucket,s3.endpointUrl=http://s3.storage:9000,s3.credentials=secret",
            "--set=prometheusRule.enabled=true,prometheusRule.labels.release=prometheus",
            "--set=kueue.cpuQueue=cpu,kueue.gpuQueue=gpu,servers={vllm,vllm-2}",
            "--set=images.pullSecrets={registry},stages.train.runtimeClassName=nvidia",
            "--set-string=stages.train.nodeSelector.gpu=a100,settings.sampling\\.top-p=0.9",
            "--set-string=serviceAccounts.stage.annotations.role=bucket",
        ),
    ),
    "mmar-jobs-without-argo": (
        "mmar-jobs",
        "mmar-jobs",
        ("--set=store=s3://bucket/a/b,argo.enabled=false,reaper.enabled=false",),
    ),
    "vllm-default": ("vllm", "vllm", ()),
    "vllm-all": (
        "vllm",
        "vllm-2",
        (
            "--set=servers=1,tensorParallel=4,initialReplicas=0,cache.type=claim",
            "--set=cache.storageClass=fast,kueue.queue=gpu,podDisruptionBudget.enabled=true",
            "--set=metrics.serviceMonitor=true,metrics.dashboard=true,image.pullSecrets={registry}",
            "--set=priorityClassName=mmar-jobs-gpu,runtimeClassName=nvidia",
            f"--set=image.digest=sha256:{'0' * 64}",
        ),
    ),
    "vllm-for-others": (
        "vllm",
        "chat",
        (
            "--set=model.name=Qwen/Qwen3-0.6B,model.tokenSecret=hub,servers=1,tensorParallel=1",
            "--set=engine.preset=none,engine.extraArgs={--max-model-len=4096}",
            "--set=initialReplicas=null,cache.type=ephemeral",
        ),
    ),
}


def find_tool(name: str) -> str | None:
    """A command's path, the pinned one first."""
    pinned = _TOOLS / name
    return str(pinned) if pinned.exists() else shutil.which(name)


def tool(name: str) -> str:
    """The same; skips the test where it is not installed."""
    found = find_tool(name)
    if found is None:
        pytest.skip(f"{name} is not installed: make deploy-tools")
    return found


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Helm."""
    return subprocess.run(
        [tool("helm"), *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def template(chart: str, release: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Render a chart, NOTES.txt left out."""
    return helm(
        *("template", release, str(CHARTS / chart), "--namespace", NAMESPACE),
        *("--kube-version", KUBERNETES, *arguments),
    )


def rendered_text(case: str) -> str:
    """The manifests of a case as Helm prints them."""
    chart, release, arguments = CASES[case]
    result = template(chart, release, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


@cache
def _objects(case: str) -> list[Object]:
    return [item for item in yaml.safe_load_all(rendered_text(case)) if item]


def rendered(case: str) -> list[Object]:
    """The objects of a case."""
    tool("helm")  # a skip must not be kept
    return _objects(case)
