"""Tests of the flags of `data build`: wrong ones are one line and leave nothing."""

import os
from pathlib import Path

import pytest

from mmar_jobs.errors import ExitCode
from tests.datasets.build_cases import GOOD, all_bytes, build, read_manifest, table
from tests.fakes import Fails


@pytest.mark.parametrize(
    ("code", "arguments", "says"),
    [
        (2, (), "--source"),
        (2, ("--source", "nonsense"), "needs KIND=PATH"),
        (2, ("--source", "magic=x"), "KIND one of"),
        (2, ("--source", "table=missing"), "there is no missing"),
        (2, ("--source", "table=SOURCE:no"), "'no' is no ratio"),
        (2, ("--source", "table=SOURCE:0"), "must be positive"),
        (2, ("--source", "table=SOURCE:1/0"), "is no ratio"),
        (2, ("--source", "table=SOURCE", "--heldout-share", "1"), "below 1"),
        (2, ("--source", "table=SOURCE", "--heldout-share", "nan"), "below 1"),
        (2, ("--source", "table=SOURCE", "--num-choices", "1"), "from 2 to 26"),
        (2, ("--source", "table=SOURCE", "--jobs", "-1"), "not be negative"),
        (2, ("--source", "table=SOURCE", "--max-clip-s", "nan"), "must be positive"),
        (2, ("--source", "table=SOURCE", "--total", "99"), "lower --total"),
        (2, ("--source", "table=SOURCE:1", "--source", "table=SOURCE"), "give all or none"),
        (3, ("--source", "table=SOURCE"), "split is empty"),
        (3, ("--source", "countingqa=SOURCE"), "has no CountingQA"),
        (3, ("--source", "table=EMPTY"), "gave no question"),
    ],
)
def test_wrong_settings_and_data_are_one_line(
    code: int,
    arguments: tuple[str, ...],
    says: str,
    tmp_path: Path,
    fails: Fails,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the output folder is not there, not even half."""
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "SOURCE", [GOOD | {"id": "1"}])
    table(tmp_path / "EMPTY", [])
    assert says in fails(ExitCode(code), "data", "build", "out", "--jobs", "1", *arguments)
    assert {"SOURCE", "EMPTY"} == {path.name for path in tmp_path.iterdir()}


def test_a_finished_build_is_not_written_over(tmp_path: Path, fails: Fails) -> None:
    """An empty folder is taken, one that holds anything is refused."""
    source = table(tmp_path / "s", [GOOD | {"id": "1"}])
    output = tmp_path / "o"
    output.mkdir()
    flags = ("--source", source, "--heldout-share", "0")
    assert 0 == build(output, *flags)
    before = all_bytes(output)
    assert "already there" in fails(ExitCode.SETTINGS, "data", "build", str(output), *flags)
    assert before == all_bytes(output)


def test_a_path_with_a_colon_is_a_path(tmp_path: Path) -> None:
    """Only what no path explains is a ratio."""
    source = table(tmp_path / "s:2", [GOOD | {"id": "1"}])
    assert 0 == build(tmp_path / "o", "--source", source, "--heldout-share", "0")
    assert read_manifest(tmp_path / "o")["sources"][0]["ratio"] is None
    assert 0 == build(tmp_path / "p", "--source", f"{source}:3", "--heldout-share", "0")
    assert "3" == read_manifest(tmp_path / "p")["sources"][0]["ratio"]


def test_an_unwritable_place_is_a_setting(tmp_path: Path, fails: Fails) -> None:
    """One line, exit 2."""
    source = table(tmp_path / "s", [GOOD | {"id": "1"}])
    (tmp_path / "file").write_text("")
    target = os.fspath(tmp_path / "file" / "out")
    line = fails(
        ExitCode.SETTINGS, "data", "build", target, "--source", source, "--heldout-share", "0"
    )
    assert "file" in line
