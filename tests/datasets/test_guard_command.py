"""Tests of `data guard` from outside, on real files: what is refused, told, written and left."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmar_jobs.cli import run_command
from mmar_jobs.datasets.clip_cache import NAME
from mmar_jobs.errors import ExitCode
from tests.datasets.sound_cases import (
    melody,
    needs_espeak,
    needs_ffmpeg,
    sentence,
    speak,
    write_mp3,
    write_rows,
    write_wav,
)
from tests.fakes import Fails

pytestmark = [needs_ffmpeg, needs_espeak]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark of four clips, and training rows of which every other shares something."""
    base = tmp_path_factory.mktemp("guard")
    bench, train = base / "bench", base / "train"
    speak(bench / "a/speech.wav", sentence(1, 14)[1])
    write_wav(bench / "a/song.wav", melody(1, 9))
    write_wav(bench / "a/video.wav", melody(2, 4))
    write_wav(bench / "a/bytes.wav", melody(3, 4))
    youtube = "https://www.youtube.com/watch?v=AAAAAAAAAAA"
    rows = [
        {"id": "b-speech", "audio_path": "./a/speech.wav"},
        {"id": "b-song", "audio_path": "./a/song.wav"},
        {"id": "b-video", "audio_path": "./a/video.wav", "url": youtube},
        {"id": "b-bytes", "audio_path": "./a/bytes.wav"},
    ]
    for row in rows:
        row |= {"question": "What?", "choices": ["x", "y"], "answer": "x"}  # type: ignore[dict-item]
    (bench / "meta.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    write_mp3(bench / "a/speech.wav", train / "c/speech.mp3", "-ss", "2", rate_hz=22_050)
    write_mp3(bench / "a/song.wav", train / "c/song.mp3", "-af", "adelay=700")
    (train / "c/bytes.wav").write_bytes((bench / "a/bytes.wav").read_bytes())
    for seed in range(4):
        write_wav(train / f"c/new-{seed}.wav", melody(100 + seed, 5))
    write_rows(
        train / "q.jsonl",
        [
            {"id": "new-0", "audio": "c/new-0.wav"},
            {"id": "b-song", "audio": "c/new-1.wav"},
            {"id": "new-2", "audio": "c/new-2.wav", "source_ids": ["youtube:BBBBBBBBBBB"]},
            {"id": "cut", "audio": "c/new-3.wav", "source_ids": ["youtube:AAAAAAAAAAA"]},
            {"id": "bytes", "audio": "c/bytes.wav"},
            {"id": "speech", "audio": "c/speech.mp3"},
            {"id": "song", "audio": "c/song.mp3"},
            {"id": "tied", "audio": "c/new-1.wav"},
        ],
    )
    return base


def guard(place: Path, *arguments: str, train: str = "train/q.jsonl", cache: str = "none") -> int:
    """Run the command in this process."""
    benchmark = ["--benchmark", os.fspath(place / "bench/meta.jsonl"), "--jobs", "1"]
    where = os.fspath(place / train)
    return run_command("data", ["guard", where, *benchmark, "--cache", cache, *arguments])


def test_every_rule_has_its_hit(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Id, video, bytes, and sound through mp3 at 32 kbit/s, cut by 2 s or begun later."""
    hits = tmp_path / "hits.jsonl"
    assert ExitCode.DATA == guard(place, "--hits", os.fspath(hits), "--json")
    said = capsys.readouterr()
    found = json.loads(said.out)
    by_id = {hit["id"]: hit for hit in found["hits"]}
    assert {
        "b-song": ("id", "b-song"),
        "cut": ("source", "b-video"),
        "bytes": ("file", "b-bytes"),
        "speech": ("sound", "b-speech"),
        "song": ("sound", "b-song"),
        "tied": ("file", "b-song"),
    } == {key: (hit["rule"], hit["benchmark_id"]) for key, hit in by_id.items()}
    assert "b-song" == by_id["tied"]["via"]
    assert (8, 4, 6) == tuple(
        found[name] for name in ("num_rows", "num_benchmark_rows", "num_refused")
    )
    speech, song = by_id["speech"], by_id["song"]
    assert 2 == pytest.approx(speech["benchmark_s"] - speech["row_s"], abs=0.15)
    assert -0.7 == pytest.approx(song["benchmark_s"] - song["row_s"], abs=0.15)
    assert song["stretch_s"] > 7
    assert song["probability"] < 1e-12
    assert found["hits"] == [json.loads(line) for line in hits.read_text().splitlines()]
    assert "6 of 8 rows" in said.err


def test_the_table_names_lines_and_evidence(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line a row, in the order of the file."""
    assert ExitCode.DATA == guard(place)
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert "6 of 8 rows refused, held against 4 of the benchmark" in lines[0]
    assert ["1 by id", "1 by source", "2 by file", "2 by sound"] == [s.strip() for s in lines[1:5]]
    assert ["line 2", "line 4", "line 5", "line 6", "line 7", "line 8"] == [
        line.partition(":")[0] for line in lines[5:]
    ]
    assert "b-song has the same id b-song as b-song" in lines[5]
    assert "speech sounds like b-speech: " in lines[8]
    assert said.err.endswith("are refused: write the others with --clean\n")


def test_many_rows_do_not_fill_the_screen(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twenty are shown, and where the others are."""
    audio = os.fspath(place / "bench/a/song.wav")
    rows = [{"id": f"r{i}", "audio": f"file://{audio}"} for i in range(25)]
    write_rows(tmp_path / "q.jsonl", rows)
    assert ExitCode.DATA == guard(place, train=os.fspath(tmp_path / "q.jsonl"))
    lines = capsys.readouterr().out.splitlines()
    assert 20 == sum(line.startswith("line ") for line in lines)
    assert "and 5 more: --hits or --json have them all" == lines[-1]


def test_clean_rows_are_written_as_they_stand(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Spaces, order and unknown bytes included; guarded again they pass, exit 0."""
    odd = (place / "train/q.jsonl").read_text().splitlines()
    odd[0] = odd[0].replace('": ', '" :  ') + "\t"
    odd[2:2] = ["", "no json"]
    (place / "train/odd.jsonl").write_text("\r\n".join(odd))
    clean = place / "train/clean.jsonl"
    assert ExitCode.DATA == guard(place, "--clean", os.fspath(clean), train="train/odd.jsonl")
    said = capsys.readouterr()
    assert "1 more lines are no question" in said.out
    assert f"train on {clean}" in said.err
    assert f"{odd[0]}\n{odd[4]}\n" == clean.read_text()
    assert ExitCode.DONE == guard(place, train="train/clean.jsonl")
    assert "0 of 2 rows refused" in capsys.readouterr().out


def test_the_guard_says_what_ingest_does(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rows that ingest drops are those that the guard refuses, for the same reasons."""
    assert ExitCode.DATA == guard(place)
    refused = {
        line.partition(": ")[2]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("line ")
    }
    arguments = ["--store", os.fspath(tmp_path), "--run-id", "r", "--data.heldout-fraction", "0.5"]
    arguments += ["--questions", os.fspath(place / "train/q.jsonl"), "--data.seed", "3"]
    arguments += ["--benchmark", os.fspath(place / "bench/meta.jsonl")]
    arguments += ["--data.contamination", "drop"]
    assert ExitCode.DONE == run_command("ingest", arguments)
    manifest = json.loads((tmp_path / "runs/r/questions/manifest.json").read_text())
    dropped = {
        f"{reject['id']} {reject['reason'].partition('the benchmark: ')[2]}"
        for reject in manifest["metrics"]["rejects"]
    }
    assert refused == dropped


def test_what_cannot_be_heard_is_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing, an empty and a broken clip may hold anything."""
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    (tmp_path / "empty.wav").write_bytes(b"")
    write_wav(tmp_path / "good.wav", melody(200, 3))
    names = ("missing", "broken", "empty", "good")
    rows: list[dict[str, Any]] = [{"id": name, "audio": f"{name}.wav"} for name in names]
    train = os.fspath(write_rows(tmp_path / "q.jsonl", rows))
    clean = tmp_path / "clean.jsonl"
    assert ExitCode.DATA == guard(place, "--clean", os.fspath(clean), "--json", train=train)
    found = json.loads(capsys.readouterr().out)
    assert (3, []) == (found["num_refused"], found["hits"])
    assert [1, 2, 3] == [entry["line_number"] for entry in found["unheard"]]
    reasons = [entry["reason"] for entry in found["unheard"]]
    assert all(f"{name}.wav" in why for name, why in zip(names[:3], reasons, strict=True))
    assert ["good"] == [json.loads(line)["id"] for line in clean.read_text().splitlines()]


def test_plain_clips_are_counted(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A steady tone sounds like any other: only its id, source and bytes could betray it."""
    from tests.fakes import tone

    write_wav(tmp_path / "tone.wav", tone(seconds=5)[:, 0])
    train = os.fspath(write_rows(tmp_path / "q.jsonl", [{"id": "t", "audio": "tone.wav"}]))
    assert ExitCode.DONE == guard(place, train=train)
    assert "1 clips too plain to be known by their sound" in capsys.readouterr().out


def test_a_clip_beyond_comparison_is_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the first 17 minutes are compared, so what lasts longer is not let through."""
    silence = ["-f", "lavfi", "-i", "anullsrc=r=16000:cl=mono", "-t", "1100"]
    path = os.fspath(tmp_path / "long.flac")
    subprocess.run(["ffmpeg", "-v", "error", *silence, path], check=True)
    train = os.fspath(write_rows(tmp_path / "q.jsonl", [{"id": "t", "audio": "long.flac"}]))
    assert ExitCode.DATA == guard(place, train=train)
    assert "lasts 1100 s, 1049 s can be compared: cut it" in capsys.readouterr().out


def test_without_audio_no_clip_is_read(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ids, sources and digests that rows record are compared all the same."""
    rows: list[dict[str, Any]] = [
        {"id": "b-song", "audio": "absent.wav"},
        {"id": "cut", "audio": "absent.wav", "source_ids": ["youtube:AAAAAAAAAAA"]},
        {"id": "digest", "audio": "absent.wav", "audio_sha256": "feed"},
    ]
    train = os.fspath(write_rows(tmp_path / "q.jsonl", rows))
    bench = write_rows(tmp_path / "b.jsonl", [{"id": "x", "audio": "y", "audio_sha256": "feed"}])
    assert ExitCode.DATA == guard(place, "--no-audio", "--json", train=train)
    found = json.loads(capsys.readouterr().out)
    assert ["b-song", "cut"] == [hit["id"] for hit in found["hits"]]
    arguments = [train, "--benchmark", os.fspath(bench), "--no-audio", "--json"]
    assert ExitCode.DATA == run_command("data", ["guard", *arguments])
    assert ["digest"] == [hit["id"] for hit in json.loads(capsys.readouterr().out)["hits"]]


@pytest.mark.parametrize(
    ("code", "arguments", "says"),
    [
        (3, ("missing.jsonl",), "missing.jsonl"),
        (3, ("empty.jsonl",), "holds no question: it is empty"),
        (3, ("bad.jsonl",), "line 1: is not JSON"),
        (2, ("array.json", "--clean", "x"), "is a JSON array"),
        (2, ("good.jsonl", "--hits", "good.jsonl/x"), "good.jsonl"),
        (2, ("good.jsonl", "--jobs", "-1"), "--jobs"),
        (2, ("good.jsonl", "--cache", "bad.jsonl"), "delete it, or choose another --cache"),
        (3, ("good.jsonl", "--benchmark", "missing.jsonl"), "missing.jsonl"),
        (3, ("good.jsonl", "--benchmark", "bad.jsonl"), "bad.jsonl"),
        (3, ("good.jsonl", "--benchmark", "half.jsonl"), "what cannot be read cannot be guarded"),
        (3, ("good.jsonl", "--benchmark", "clipless.jsonl"), "1 of 1 benchmark clips cannot be"),
        (2, ("good.jsonl", "--benchmark", "http://x.org/y"), "cannot be read"),
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
    """With the exit code that says whose fault it is, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    write_wav(tmp_path / "a.wav", melody(300, 2))
    row: dict[str, object] = {"id": "r", "audio": "a.wav"}
    good = write_rows(tmp_path / "good.jsonl", [row]).read_text()
    write_rows(tmp_path / "bench.jsonl", [row | {"id": "b"}])
    write_rows(tmp_path / "clipless.jsonl", [row | {"audio": "no.wav"}])
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "bad.jsonl").write_text("no json\n")
    (tmp_path / "half.jsonl").write_text(f"{good}no json\n")
    (tmp_path / "array.json").write_text(f"[{good.strip()}]")
    before = {path.name for path in tmp_path.iterdir()}
    chosen = ["--benchmark", "bench.jsonl", "--jobs", "1", "--cache", "none", *arguments]
    assert says in fails(ExitCode(code), "data", "guard", *chosen)
    assert before == {path.name for path in tmp_path.iterdir()}


def test_clips_are_remembered_beside_the_data(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one file each, hidden; the second time says the same."""
    assert ExitCode.DATA == guard(place, cache="beside")
    first = capsys.readouterr().out
    assert all((place / side / NAME).exists() for side in ("bench", "train"))
    assert ExitCode.DATA == guard(place, cache="beside")
    assert first == capsys.readouterr().out


def test_local_files_need_no_s3(place: Path) -> None:
    """Neither boto3 nor torch is imported."""
    arguments = ["guard", os.fspath(place / "train/q.jsonl"), "--jobs", "1", "--cache", "none"]
    arguments += ["--benchmark", os.fspath(place / "bench/meta.jsonl")]
    code = (
        "import sys; from mmar_jobs.cli import run_command\n"
        f"assert 3 == run_command('data', {arguments!r})\n"
        "heavy = {'boto3', 'botocore', 'torch', 'transformers', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr
