"""Tests of figures over time: changes are found where they are, and the page says so."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from mmar_jobs.bench.history import find_changes, make_series
from mmar_jobs.bench.result import Measurement, write_measurements
from mmar_jobs.cli import run_command
from tests.bench.figures import HERE, speed
from tests.report_html import tags_of, words_of


def past(
    values: list[float], device: str = HERE.device, direction: str = "higher"
) -> list[Measurement]:
    """One measurement a day, each of a commit of its own."""
    return [
        speed(
            [value, value * 1.02, value * 0.98],
            direction=direction,
            environment=dataclasses.replace(
                HERE, device=device, commit=f"{day:040x}", measured_at=f"2026-01-{day + 1:02}"
            ),
        )
        for day, value in enumerate(values)
    ]


def steps(*levels: float, noise: float, seed: int, num: int = 10) -> list[float]:
    """`num` noisy values at each level."""
    dice = np.random.default_rng(seed)
    return [float(value) for level in levels for value in level * dice.normal(1, noise, num)]


def test_noise_alone_rarely_shows_a_change() -> None:
    """In at most 5 % of 200 series of 30 with 5 % noise."""
    found = [find_changes(steps(1, noise=0.05, seed=seed, num=30)) for seed in range(200)]
    assert sum(map(bool, found)) <= 10


def test_a_fall_and_a_recovery_are_found_where_they_are() -> None:
    """A tenth less and back again, in noise of 2 %."""
    for seed in range(20):
        found = find_changes(steps(100, 90, 100, noise=0.02, seed=seed))
        assert 2 == len(found)
        for point, (index, change) in zip(found, [(10, -0.1), (20, 0.111)], strict=True):
            assert abs(point.index - index) <= 1
            assert point.change == pytest.approx(change, abs=0.03)


@pytest.mark.parametrize("values", [[], [1.0] * 5, [1.0] * 20, [0.0] * 10 + [1.0] * 10])
def test_what_has_no_levels_has_no_changes(values: list[float]) -> None:
    """Nothing, too few, all equal, and figures without a ratio."""
    assert () == find_changes(values)


def test_an_outlier_is_no_level() -> None:
    """One slow day among fifteen."""
    values = steps(100, noise=0.01, seed=0, num=15)
    values[7] = 50.0
    assert () == find_changes(values)


def test_hardware_is_kept_apart_and_time_orders() -> None:
    """The same figure on two devices is two series; files may come in any order."""
    mixed = [*past([1.0, 2.0, 3.0]), *past([5.0, 6.0], device="NVIDIA H100")]
    first, second = make_series(reversed(mixed))
    assert [5.0, 6.0] == [one.value for one in first.figures]
    assert [1.0, 2.0, 3.0] == [one.value for one in second.figures]


def test_page_and_lines_name_the_commit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Slower is worse, less memory is better, and the commit of each is named."""
    slower = past(steps(100, 90, noise=0.01, seed=1))
    smaller = [
        dataclasses.replace(one, name="train/peak_gib", unit="GiB")
        for one in past(steps(60, 50, noise=0.01, seed=2), direction="lower")
    ]
    for name, figures in (("a/one.jsonl", slower), ("b/two.jsonl", smaller)):
        for day, one in enumerate(figures):
            path = tmp_path / f"{day:02}" / name
            path.parent.mkdir(parents=True)
            write_measurements(path, [one])
    page = tmp_path / "page.html"
    assert 0 == run_command("bench", ["history", str(tmp_path), "--html", str(page)])
    said = capsys.readouterr().out
    assert re.search(rf"^worse: train/tokens_per_s -(9|10)\.\d % at {10:040x}$", said, re.MULTILINE)
    assert re.search(rf"^better: train/peak_gib -1[67]\.\d % at {10:040x}$", said, re.MULTILINE)
    assert "40 figures of 40 files" in said
    html = page.read_text()
    words = words_of(html)
    assert "1 figure became worse at a known commit" in words
    assert f"{10:040x}"[:12] in words
    assert 2 == sum(tag == "svg" for tag, _ in tags_of(html))


def test_a_broken_or_missing_result_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file and line, exit code 3, and no page."""
    page = tmp_path / "page.html"
    assert 3 == run_command("bench", ["history", str(tmp_path), "--html", str(page)])
    assert "has no results" in capsys.readouterr().err
    (tmp_path / "x.jsonl").write_text("{}\n")
    assert 3 == run_command("bench", ["history", str(tmp_path), "--html", str(page)])
    assert "x.jsonl line 1 is no result" in capsys.readouterr().err
    assert not page.exists()
