"""Tests of `mmar-jobs gate`: everything is reported, then it fails for the right reason."""

import dataclasses
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from mmar_jobs.bench.difference import Rule
from mmar_jobs.bench.gate import compare_results
from mmar_jobs.bench.result import Measurement, write_measurements
from mmar_jobs.cli import run_command
from mmar_jobs.errors import DataError
from tests.bench.figures import HERE, accuracy, speed

FAST = speed([100.0, 101.0, 99.0, 100.0] * 2)
SLOW = speed([90.0, 91.0, 89.0, 90.0] * 2)
MEMORY = speed([5.0, 5.1] * 4, name="train/peak_gib", unit="GiB", direction="lower")
CAUSE = speed([1.0], name="train/num_tokens", unit="tokens", direction="none", detail={})


def files(folder: Path, new: list[Measurement], baseline: list[Measurement]) -> list[str]:
    """The arguments of a comparison of two files."""
    write_measurements(folder / "new.jsonl", new)
    write_measurements(folder / "base.jsonl", baseline)
    return [str(folder / "new.jsonl"), "--baseline", str(folder / "base.jsonl")]


@pytest.mark.parametrize(
    ("new", "baseline", "code", "words"),
    [
        ([FAST], [FAST], 0, "no detectable change"),
        ([FAST], [SLOW], 0, "1 better"),
        ([SLOW], [FAST], 4, "Worse: train/tokens_per_s"),
        ([accuracy([False] * 30 + [True] * 70)], [accuracy([True] * 100)], 4, "-30.0 points"),
        ([SLOW, CAUSE, MEMORY], [FAST, CAUSE, MEMORY], 4, "**worse**"),
    ],
)
def test_exit_codes(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    new: list[Measurement],
    baseline: list[Measurement],
    code: int,
    words: str,
) -> None:  # fmt: skip
    """Better and unchanged end with 0, worse with 4, and the table says which."""
    assert code == run_command("gate", files(tmp_path, new, baseline))
    assert words in capsys.readouterr().out


def test_files_for_machines_say_the_same(tmp_path: Path) -> None:
    """JUnit has one case a figure and fails for what is worse; JSON has all numbers."""
    command = files(tmp_path, [SLOW, MEMORY], [FAST, MEMORY])
    outputs = ["--junit", str(tmp_path / "junit.xml"), "--json", str(tmp_path / "gate.json")]
    assert 4 == run_command("gate", [*command, *outputs])
    suite = ET.parse(tmp_path / "junit.xml").getroot()  # noqa: S314 - our own file
    assert ("2", "1", "0") == tuple(suite.get(key) for key in ("tests", "failures", "errors"))
    assert 2 == len(suite.findall("testcase"))
    (failure,) = suite.findall("testcase/failure")
    assert "-10.0 %" in str(failure.get("message"))
    written = json.loads((tmp_path / "gate.json").read_text())
    assert ["train/tokens_per_s"] == written["worse"]
    assert {"worse", "no detectable change"} == {one["outcome"] for one in written["figures"]}
    assert pytest.approx(-0.1, abs=0.005) == written["figures"][0]["change"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"environment": dataclasses.replace(HERE, device="NVIDIA H100")}, "other hardware"),
        ({"values": (1.0, 2.0)}, "2 repeats cannot be judged"),
        ({"case": {"tokens": 4096}}, "is in the baseline and not in the new results"),
        ({"direction": "lower"}, "lower is better now, higher was before"),
    ],
)
def test_what_cannot_be_compared_fails_after_the_rest_was_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, Any], words: str
) -> None:
    """Exit code 3, with the other figure's row and the reason in the table and in JUnit."""
    odd = dataclasses.replace(FAST, **changed)
    command = [*files(tmp_path, [odd, MEMORY], [FAST, MEMORY]), "--junit", str(tmp_path / "j.xml")]
    assert 3 == run_command("gate", command)
    said = capsys.readouterr()
    assert "| train/peak_gib |" in said.out
    assert words in said.out
    assert said.err.startswith("mmar-jobs gate: Incomplete: 1 figures could not be compared")
    assert "1" == ET.parse(tmp_path / "j.xml").getroot().get("errors")  # noqa: S314 - our own file


def test_worse_weighs_more_than_incomplete(tmp_path: Path) -> None:
    """A figure that is worse decides, whatever else is missing."""
    lost = dataclasses.replace(FAST, name="train/lost")
    assert 4 == run_command("gate", files(tmp_path, [SLOW], [FAST, lost]))


def test_nothing_in_common_says_nothing() -> None:
    """Two files about different things are no comparison."""
    with pytest.raises(DataError, match="nothing of the new results can be compared"):
        compare_results([FAST], [MEMORY], Rule())


def test_new_figures_and_changed_software_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A figure without a baseline is listed, and the library that changed with it."""
    newer = dataclasses.replace(HERE, packages={"torch": "2.12.0"}, commit="f00")
    new = [dataclasses.replace(FAST, environment=newer), MEMORY]
    assert 0 == run_command("gate", files(tmp_path, new, [FAST]))
    said = capsys.readouterr().out
    assert "New, without a baseline: train/peak_gib" in said
    assert "torch 2.11.0 to 2.12.0" in said
    assert "commit c1e499c against f00" in said


@pytest.mark.parametrize("flag", [["--alpha", "2"], ["--min-change", "x"], ["--margin", "-1"]])
def test_bad_settings_are_refused(tmp_path: Path, flag: list[str]) -> None:
    """Exit code 2 before anything is read."""
    assert 2 == run_command("gate", [*files(tmp_path, [FAST], [FAST]), *flag])
