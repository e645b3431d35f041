"""Tests of results kept by commit: what is recorded, judged, and made the baseline."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from mmar_jobs.bench.archive import Archive
from mmar_jobs.bench.cells import Cell, parse_cell, parse_matrix
from mmar_jobs.bench.result import Measurement, write_measurements
from mmar_jobs.cli import run_command
from mmar_jobs.errors import DataError, SettingsError, TryAgain
from tests.bench.figures import HERE, speed

OLD, NEW = "a" * 40, "b" * 40
TRAIN = parse_cell("train --tokens 8192")
FILTER = parse_cell("filter")
MATRIX = json.dumps([{"bench": str(cell), "on": "cpu"} for cell in (TRAIN, FILTER)])


def figures(value: float, **changed: Any) -> list[Measurement]:
    """Eight repeats around a value, not measured in turns with anything."""
    values = [value * (1 + 0.01 * (i % 3 - 1)) for i in range(8)]
    return [speed(values, turns="", **changed)]


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """An empty one, in the store that `bench` names."""
    return Archive.at(str(tmp_path / "store"))


def keep(
    archive: Archive, folder: Path, commit: str, cell: Cell, value: float, **changed: Any
) -> None:
    """As `record` would, without measuring."""
    log, results = folder / "log", folder / "results"
    log.write_text("measured\n")
    write_measurements(results, figures(value, name=f"{cell.name}/per_s", **changed))
    archive.keep(commit, cell, log=log, results=results)


def bench(command: str, folder: Path, *flags: str) -> int:
    """One of the commands on that store."""
    return run_command("bench", [command, *flags, "--store", str(folder / "store")])


def judge(folder: Path, commit: str = NEW, matrix: str = MATRIX) -> int:
    """The verdict on a commit; the table goes to a file."""
    flags = ("--commit", commit, "--cells", matrix, "--outputs", str(folder / "outputs"))
    return bench("judge", folder, *flags)


def test_a_cell_is_named_by_what_it_runs() -> None:
    """Spaces and quotes do not matter, flags do."""
    assert parse_cell(" filter  --candidates '50'").key == parse_cell("filter --candidates 50").key
    assert parse_cell("filter --candidates 51").key != parse_cell("filter --candidates 50").key
    assert ("filter", 16) == (FILTER.name, len(FILTER.digest))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "does not begin with a bench's name"),
        ("../x", "does not begin with a bench's name"),
        ("filter 'x", "cannot be read"),
        ("filter --commit=x", "leave --commit out"),
    ],
)
def test_a_text_that_is_no_cell_is_refused(text: str, words: str) -> None:
    """Also what would record under another commit, or outside of it."""
    with pytest.raises(SettingsError, match=words):
        parse_cell(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x", "no JSON list"),
        ('{"bench": "filter"}', "no JSON list"),
        ('[{"on": "cpu"}]', "no JSON list"),
        ("[]", "is empty"),
        ('[{"bench": "filter"}, {"bench": " filter"}]', "has a bench twice"),
    ],
)
def test_a_matrix_that_is_none_is_refused(text: str, words: str) -> None:
    """Before anything is read."""
    with pytest.raises(SettingsError, match=words):
        parse_matrix(text)


def test_a_bench_is_recorded_with_its_log(
    tmp_path: Path, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real figures under the commit that was named; the settings of runs change nothing."""
    monkeypatch.setenv("MMAR_CONFIG", "/nowhere")
    text, image = "filter --candidates 160 --repeats 1", "registry.example/cpu@sha256:0"
    assert 0 == bench("record", tmp_path, text, "--commit", NEW, "--image", image)
    found = archive.find(NEW, parse_cell(text)) or []
    assert "filter/candidates_per_s" in {one.name for one in found}
    assert {(NEW, image)} == {(one.environment.commit, one.environment.image) for one in found}
    log = archive.store.read(f"{NEW}/{parse_cell(text).key}.log").decode()
    assert "filter/candidates_per_s" in log


def test_a_bench_that_fails_leaves_its_log_and_no_results(tmp_path: Path, archive: Archive) -> None:
    """With the bench's own exit code."""
    assert 2 == bench("record", tmp_path, "filter --candidates no", "--commit", NEW)
    cell = parse_cell("filter --candidates no")
    assert archive.find(NEW, cell) is None
    assert b"'no' is no whole number" in archive.store.read(f"{NEW}/{cell.key}.log")


@pytest.mark.parametrize(("value", "code", "words"), [(100, 0, "Not worse"), (80, 4, "Worse: ")])
def test_results_are_judged_by_the_baseline(
    tmp_path: Path, archive: Archive, value: float, code: int, words: str
) -> None:
    """The way from main's first results to the verdict on a change; the table is always there."""
    for commit, number in ((OLD, 100.0), (NEW, value)):
        for cell in (TRAIN, FILTER):
            keep(archive, tmp_path, commit, cell, number)
    assert 0 == judge(tmp_path, OLD)
    table = tmp_path / "outputs" / "table"
    assert table.read_text().startswith("### No baseline yet (2 figures)")
    assert 0 == bench("baseline", tmp_path, "--commit", OLD, "--ref", "refs/heads/main")
    assert code == judge(tmp_path)
    assert words in table.read_text()


def test_a_bench_without_results_fails_the_verdict_after_the_table(
    tmp_path: Path, archive: Archive, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was measured is compared all the same, and the log of the rest is named."""
    for commit in (OLD, NEW):
        keep(archive, tmp_path, commit, TRAIN, 100.0)
    archive.move_baseline(OLD)
    assert 3 == judge(tmp_path)
    said = capsys.readouterr()
    assert f"Not compared: filter has no results: its log {NEW}/{FILTER.key}.log" in said.out
    assert "| train/per_s |" in said.out
    assert said.err.startswith("mmar-jobs bench: Incomplete: 1 figures")


def test_new_nodes_are_said_in_the_table(tmp_path: Path, archive: Archive) -> None:
    """Nothing can be compared, which is what whoever reads the table must learn."""
    keep(archive, tmp_path, OLD, TRAIN, 100.0)
    there = dataclasses.replace(HERE, device="NVIDIA H100")
    keep(archive, tmp_path, NEW, TRAIN, 100.0, environment=there)
    archive.move_baseline(OLD)
    assert 3 == judge(tmp_path, matrix=json.dumps([{"bench": str(TRAIN)}]))
    table = (tmp_path / "outputs" / "table").read_text()
    assert "measured on other hardware: device NVIDIA H100, not NVIDIA H200" in table


def test_two_cells_must_not_measure_the_same_figure(
    tmp_path: Path, archive: Archive, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which of the two would count."""
    other = parse_cell("train --steps 9")
    for cell in (TRAIN, other):
        keep(archive, tmp_path, NEW, cell, 100.0)
    assert 3 == judge(tmp_path, matrix=json.dumps([{"bench": str(c)} for c in (TRAIN, other)]))
    assert "train/per_s is measured by two cells" in capsys.readouterr().err


def test_only_main_moves_the_baseline(
    tmp_path: Path, archive: Archive, capsys: pytest.CaptureFixture[str]
) -> None:
    """A branch is refused, and so is a commit that was never measured."""
    keep(archive, tmp_path, NEW, TRAIN, 100.0)
    assert 2 == bench("baseline", tmp_path, "--commit", NEW, "--ref", "refs/heads/change")
    assert "only refs/heads/main moves the baseline" in capsys.readouterr().err
    assert 3 == bench("baseline", tmp_path, "--commit", OLD, "--ref", "refs/heads/main")
    assert 0 == archive.baseline().number


def test_a_move_keeps_other_cells_and_the_past(tmp_path: Path, archive: Archive) -> None:
    """Each cell has the last commit that measured it; earlier baselines stay in the store."""
    keep(archive, tmp_path, OLD, TRAIN, 100.0)
    keep(archive, tmp_path, OLD, FILTER, 100.0)
    keep(archive, tmp_path, NEW, FILTER, 100.0)
    archive.move_baseline(OLD)
    archive.move_baseline(NEW)
    assert {TRAIN.key: OLD, FILTER.key: NEW} == archive.baseline().commits
    assert 2 == len(archive.store.list("baseline/"))


def test_of_two_moves_at_once_one_wins(tmp_path: Path, archive: Archive) -> None:
    """The other is told to look again, not overwritten and not overwriting."""
    keep(archive, tmp_path, OLD, TRAIN, 100.0)

    class Racing:
        """The store, where somebody else's move is always one ahead."""

        def __getattr__(self, name: str) -> Any:
            return getattr(archive.store, name)

        def write_new(self, key: str, data: bytes) -> bool:
            """Theirs came first."""
            archive.store.write_new(key, b'{"commits": {}}')
            return archive.store.write_new(key, data)

    racing = dataclasses.replace(archive, store=Racing())
    with pytest.raises(TryAgain, match="moved by somebody else"):
        racing.move_baseline(OLD)
    assert {} == archive.baseline().commits


def test_a_baseline_that_is_broken_or_gone_is_said(
    tmp_path: Path, archive: Archive, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its address, and what to do."""
    for commit in (OLD, NEW):
        keep(archive, tmp_path, commit, TRAIN, 100.0)
    archive.move_baseline(OLD)
    archive.store.delete(f"{OLD}/{TRAIN.key}.jsonl")
    assert 3 == judge(tmp_path)
    assert f"is gone, commit {OLD}: move it" in capsys.readouterr().err
    archive.store.write("baseline/00000002.json", b"[]")
    with pytest.raises(DataError, match=r"00000002.json is no baseline: delete it"):
        archive.baseline()


def test_kept_results_are_a_history(tmp_path: Path, archive: Archive) -> None:
    """`bench history` draws the folder as it is: logs and baselines are no results."""
    for day, commit in enumerate((OLD, NEW), start=1):
        moment = dataclasses.replace(HERE, commit=commit, measured_at=f"2026-01-0{day}")
        keep(archive, tmp_path, commit, TRAIN, 100.0, environment=moment)
    archive.move_baseline(NEW)
    page = tmp_path / "page.html"
    address = str(tmp_path / "store" / "benchmarks")
    assert 0 == run_command("bench", ["history", address, "--html", str(page)])
    assert "train/per_s" in page.read_text()
