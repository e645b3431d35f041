"""Fixtures of the merge tests: a base in shards, its adapter, and a merge that must fail."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mmar_jobs.errors import ExitCode
from tests import merge_cases
from tests.merge_cases import merge


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base in four shards, one layer's experts in two of them."""
    return merge_cases.sharded_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of `base`, E != R."""
    return merge_cases.adapter_for(base, tmp_path_factory.mktemp("adapter") / "adapter")


@pytest.fixture
def fails(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a merge that must fail with a code and one line, which it returns."""

    def run(code: ExitCode, *arguments: object) -> str:
        capfd.readouterr()
        assert code == merge(*arguments)
        written = capfd.readouterr()
        assert "" == written.out
        lines = [line for line in written.err.splitlines() if not line.startswith("{")]
        assert 1 == len(lines), written.err
        assert lines[0].startswith("mmar-jobs merge: ")
        return lines[0]

    return run
