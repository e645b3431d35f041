"""Tests of the images: what their files promise, and that the cpu image really works.

The build is slow (a Debian, then 1 GB of wheels) and needs root, buildah and debootstrap; the name
of an image in CPU_IMAGE spares it.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.deploy.charts import rendered
from tests.deploy.manifests import CHARTS, ROOT, jobs, offline

IMAGES = ROOT / "images"
NAMES = ("cpu", "train", "serve")
BIN = Path(sys.executable).parent
_BUILD_S = 1500
_BUILDAH = {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs"}


def _dockerfile(name: str) -> str:
    return (IMAGES / name / "Dockerfile").read_text()


def _version(project: Path) -> str:
    found: str = tomllib.loads((project / "pyproject.toml").read_text())["project"]["version"]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_hadolint_finds_nothing(name: str) -> None:
    """Two rules are off, each with its reason in the configuration."""
    path = IMAGES / name / "Dockerfile"
    result = subprocess.run(
        [BIN / "hadolint", "--config", IMAGES / ".hadolint.yaml", path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_shellcheck_finds_nothing() -> None:
    """In the script that builds."""
    result = subprocess.run(
        [BIN / "shellcheck", IMAGES / "build"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_pinned_and_runs_as_a_number(name: str) -> None:
    """Every wheel by its hash, one base by argument, no root, labels that name the source."""
    text = _dockerfile(name)
    installs = [line for line in re.split(r"\n(?!    )", text) if "pip install" in line]
    assert installs
    assert all("uv pip install" in line for line in installs)
    assert all("--require-hashes" in line or "--no-index" in line for line in installs)
    assert {"${BASE}", "build"} >= set(re.findall(r"^FROM (\S+)", text, re.MULTILINE))
    assert re.search(r"^USER \d+:\d+$", text, re.MULTILINE)
    for label in ("title", "description", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in text
    assert "COPY sbom.cdx.json" in text
    assert ".safetensors" not in text


def test_users_are_those_that_manifests_run_as() -> None:
    """A number without a name in the image would end vLLM and torch's compiler."""
    users = {name: re.findall(r"^USER (\d+):", _dockerfile(name), re.MULTILINE) for name in NAMES}
    for stage, job in [*jobs().items(), *offline().items()]:
        pod = job["spec"]["template"]["spec"]
        image = pod["containers"][0]["image"].removeprefix("mmar-jobs/")
        assert [str(pod["securityContext"]["runAsUser"])] == users[image], stage
    [server] = [item for item in rendered("vllm-default") if item["kind"] == "StatefulSet"]
    context = server["spec"]["template"]["spec"]["securityContext"]
    assert [str(context["runAsUser"])] == users["serve"]


def test_charts_name_the_versions_that_are_built() -> None:
    """The tag that `images/build` gives is the one that a chart asks for."""
    about = {
        name: yaml.safe_load((CHARTS / name / "Chart.yaml").read_text())
        for name in ("mmar-jobs", "vllm")
    }
    values = yaml.safe_load((CHARTS / "vllm" / "values.yaml").read_text())
    assert _version(ROOT) == about["mmar-jobs"]["appVersion"] == values["initImage"]["tag"]
    assert _version(IMAGES / "serve") == about["vllm"]["appVersion"]
    lock = tomllib.loads((IMAGES / "serve" / "uv.lock").read_text())
    [vllm] = [package for package in lock["package"] if package["name"] == "vllm"]
    assert _version(IMAGES / "serve") == vllm["version"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say which: cpu, train, serve or base"),
        (["gpu"], "say which: cpu, train, serve or base"),
        (["cpu", "--bsae", "x"], "there is no option --bsae"),
        (["cpu", "--base"], "--base needs a value"),
    ],
)
def test_the_script_says_what_is_wrong(arguments: list[str], message: str) -> None:
    """One line and code 2, before anything is built."""
    result = subprocess.run(
        [IMAGES / "build", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "BUILDER": "true"},
    )
    assert (2, f"images/build: {message}\n") == (result.returncode, result.stderr)


def _buildah(*arguments: str, timeout_s: int = 300) -> str:
    result = subprocess.run(
        ["buildah", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env={**os.environ, **_BUILDAH},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.fixture(scope="module")
def container() -> Iterator[str]:
    """A container of the cpu image, built from Debian's packages where none is given."""
    missing = [name for name in ("buildah", "debootstrap") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip("needs root, and buildah and debootstrap from Debian")
    image = os.environ.get("CPU_IMAGE", "")
    if not image:
        image, base = "localhost/mmar-jobs/cpu:test", "localhost/mmar-jobs/base:test"
        for arguments in (["base", "--tag", base], ["cpu", "--base", base, "--tag", image]):
            subprocess.run([IMAGES / "build", *arguments], check=True, timeout=_BUILD_S)
    name = _buildah("from", image)
    yield name
    _buildah("rm", name)


@pytest.mark.slow
def test_the_cpu_image_runs_a_stage_as_nobody(container: str) -> None:
    """It makes a world, ingests it, and writes nowhere but in /tmp: its root may be read-only."""
    root = Path(_buildah("mount", container))
    marker = root / "tmp" / "marker"
    assert _buildah("run", container, "--", "id", "-u") == "65532"
    _buildah("run", container, "--", "touch", "/tmp/marker")  # noqa: S108 - in the container
    world = ("mmar-jobs", "tiny", "world", "/tmp/world", "--seed=1")  # noqa: S108 - likewise
    _buildah("run", container, "--", *world)
    questions = [
        f"--{name}=/tmp/world/{file}.jsonl"
        for name, file in (("questions", "train"), ("benchmark", "benchmark"))
    ]
    stage = ("mmar-jobs", "ingest", "--store=/tmp/store", "--run-id=r", *questions)
    _buildah("run", container, "--", *stage)
    assert (root / "tmp/store/runs/r/questions/manifest.json").exists()
    began = marker.stat().st_mtime
    written = [
        path
        for top in ("etc", "opt", "root", "usr", "var")
        for path in (root / top).rglob("*")
        if path.lstat().st_mtime > began
    ]
    assert [] == written
