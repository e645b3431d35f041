"""Helm's unit tests of the charts: they pass, and no template is without."""

import subprocess

import pytest

from tests.deploy.charts import tool
from tests.deploy.manifests import CHARTS


@pytest.mark.parametrize("chart", ["mmar-jobs", "vllm"])
def test_each_template_has_its_suite(chart: str) -> None:
    """By its name, so that one without is seen."""
    templates = {path.stem for path in (CHARTS / chart / "templates").glob("*.yaml")}
    suites = {path.stem for path in (CHARTS / chart / "tests").glob("*.yaml")}
    assert {f"{name}_test" for name in templates} == suites


@pytest.mark.parametrize("chart", ["mmar-jobs", "vllm"])
def test_the_suites_pass(chart: str) -> None:
    """All of them, unknown fields refused."""
    done = subprocess.run(
        [tool("helm-unittest"), "--strict", str(CHARTS / chart)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert 0 == done.returncode, done.stdout + done.stderr
