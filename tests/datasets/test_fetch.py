"""Tests of `data fetch` against a local mirror of the Hub and of Zenodo."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest

from mmar_jobs.cli import run_command
from mmar_jobs.errors import ExitCode
from tests.datasets.build_cases import (
    assert_apart,
    build,
    read_manifest,
    read_split,
    write_music,
)
from tests.datasets.servers import REVISION, Site, add_hub_dataset, add_zenodo_record, serving
from tests.fakes import Fails

META = [{"id": f"q{i}", "audio_path": f"./audio/c{i}.wav"} for i in range(3)]


def tarred(files: dict[str, bytes]) -> bytes:
    """A tar.gz of files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def mmar_files(prefix: str = "audio/", num_clips: int = 3) -> dict[str, bytes]:
    """The benchmark's repository, its clips packed below `prefix`."""
    clips = {f"{prefix}c{i}.wav": b"RIFF%d" % i for i in range(num_clips)}
    return {
        "README.md": b"# MMAR",
        "MMAR-meta.json": json.dumps(META).encode(),
        "mmar-audio.tar.gz": tarred(clips),
    }


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Site]:
    """A mirror with the benchmark on it; nobody is logged in."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    site = Site()
    add_hub_dataset(site, "BoJack/MMAR", mmar_files(), revisions=("main", "v1"))
    with serving(site) as found:
        yield found


def fetch(site: Site, folder: Path, *flags: str, name: str = "mmar") -> int:
    """Run the command against the mirror without long waits."""
    return run_command(
        "data", ["fetch", name, str(folder), "--endpoint", site.base, "--retries", "0", *flags]
    )


def read_json(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text())


@pytest.mark.parametrize("prefix", ["audio/", "./audio/", "mmar-audio/audio/", "clips/", ""])
def test_the_benchmark_lies_as_its_rows_say(prefix: str, site: Site, tmp_path: Path) -> None:
    """However the archive is packed, clips end where MMAR-meta.json looks for them."""
    add_hub_dataset(site, "BoJack/MMAR", mmar_files(prefix))
    assert 0 == fetch(site, tmp_path / "mmar")
    for i, row in enumerate(META):
        assert b"RIFF%d" % i == (tmp_path / "mmar" / row["audio_path"]).read_bytes()


def test_the_manifest_says_what_from_where(site: Site, tmp_path: Path) -> None:
    """Revision, licence, digest and size of each file; nothing that was not asked for."""
    assert 0 == fetch(site, tmp_path / "mmar")
    manifest = read_json(tmp_path / "mmar/manifest.json")
    assert (REVISION, "cc-by-nc-4.0") == (manifest["revision"], manifest["licence"])
    files = {file["path"]: file for file in manifest["files"]}
    assert {"MMAR-meta.json", "mmar-audio.tar.gz"} == set(files)
    assert all(len(file["sha256"]) == 64 and file["size_bytes"] > 0 for file in files.values())
    assert 3 == manifest["unpacked"][0]["num_files"]
    assert "" == (tmp_path / "mmar/missing.jsonl").read_text()
    assert not any("README" in path for path, _, _ in site.asked)


def test_a_second_fetch_downloads_nothing(site: Site, tmp_path: Path) -> None:
    """It only asks for the listing, and leaves the same bytes."""
    for _ in range(2):
        assert 0 == fetch(site, tmp_path / "mmar")
    assert 2 == sum("/api/" in path for path, _, _ in site.asked)
    assert 2 == sum("/resolve/" in path for path, _, _ in site.asked)


def test_an_interrupted_fetch_goes_on_and_keeps_its_revision(
    site: Site, tmp_path: Path, fails: Fails
) -> None:
    """The revision of the first attempt is asked for again, whatever main is by then."""
    path = f"/datasets/BoJack/MMAR/resolve/{REVISION}/mmar-audio.tar.gz"
    site.cut_after[path] = [50]
    line = fails(
        ExitCode.TRY_AGAIN,
        "data",
        *("fetch", "mmar", str(tmp_path / "mmar"), "--endpoint", site.base),
        *("--retries", "0", "--require-all"),
    )
    assert "mmar-audio.tar.gz" in line
    assert 0 == fetch(site, tmp_path / "mmar")
    assert ["bytes=50-"] == site.ranges(path)[1:]
    assert f"/api/datasets/BoJack/MMAR/revision/{REVISION}" == site.asked[-2][0]


def test_a_folder_is_of_one_data_set(site: Site, tmp_path: Path, fails: Fails) -> None:
    """Another name or revision in the same folder is refused."""
    assert 0 == fetch(site, tmp_path / "mmar")
    arguments = (str(tmp_path / "mmar"), "--endpoint", site.base)
    assert "choose another folder" in fails(
        ExitCode.SETTINGS, "data", "fetch", "musicbench", *arguments
    )
    info = read_json_bytes(site.files["/api/datasets/BoJack/MMAR/revision/v1"]) | {"sha": "f" * 40}
    site.files["/api/datasets/BoJack/MMAR/revision/v1"] = json.dumps(info).encode()
    line = fails(ExitCode.SETTINGS, "data", "fetch", "mmar", *arguments, "--revision", "v1")
    assert "choose another folder" in line


def read_json_bytes(data: bytes) -> dict[str, Any]:
    """A JSON object."""
    return dict(json.loads(data))


def test_what_could_not_be_had_is_listed(
    site: Site, tmp_path: Path, fails: Fails, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row whose clip the archive lacks is named; exit 0, but 3 with --require-all."""
    odd: list[object] = [{"id": "odd", "audio_path": ["no", "path"]}, "no row"]
    files = mmar_files(num_clips=2) | {"MMAR-meta.json": json.dumps([*META, *odd]).encode()}
    add_hub_dataset(site, "BoJack/MMAR", files)
    assert 0 == fetch(site, tmp_path / "mmar")
    assert "2 not had" in capsys.readouterr().out
    entries = [json.loads(x) for x in (tmp_path / "mmar/missing.jsonl").read_text().splitlines()]
    assert [
        ("./audio/c2.wav", "MMAR-meta.json row 3"),
        ("['no', 'path']", "MMAR-meta.json row 4"),
    ] == [(e["what"], e["where"]) for e in entries]
    arguments = ("fetch", "mmar", str(tmp_path / "mmar"), "--endpoint", site.base)
    assert "c2.wav" in fails(ExitCode.DATA, "data", *arguments, "--require-all")


def test_without_its_rows_there_is_no_data_set(site: Site, tmp_path: Path, fails: Fails) -> None:
    """Clips alone are an error, and no manifest looks as if all were well."""
    files = mmar_files()
    del files["MMAR-meta.json"]
    add_hub_dataset(site, "BoJack/MMAR", files)
    line = fails(
        ExitCode.DATA, "data", "fetch", "mmar", str(tmp_path / "m"), "--endpoint", site.base
    )
    assert "has no MMAR-meta.json" in line
    assert not (tmp_path / "m/manifest.json").exists()


def test_a_data_set_without_known_archive_names_what_to_do(site: Site, tmp_path: Path) -> None:
    """CountingQA's clips are where nobody documents them: the rows come, the rest is listed."""
    rows = b'[{"id": "1", "sound": "concat_1.wav", "conversations": []}]'
    files = {"audioskills_xl/CountingQA.json": rows, "audioskills_xl/WavCaps.json": b"[]"}
    add_hub_dataset(site, "nvidia/AudioSkills", files)
    assert 0 == fetch(site, tmp_path / "c", name="countingqa")
    assert (tmp_path / "c/audioskills_xl/CountingQA.json").is_file()
    assert not (tmp_path / "c/audioskills_xl/WavCaps.json").exists()
    assert "by hand" in (tmp_path / "c/missing.jsonl").read_text()
    packed = {"audioskills_xl/counting_audios.tar.gz": tarred({"counting/concat_1.wav": b"RIFF"})}
    add_hub_dataset(site, "nvidia/AudioSkills", files | packed)
    assert 0 == fetch(site, tmp_path / "d", name="countingqa")
    assert "" == (tmp_path / "d/missing.jsonl").read_text()


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (401, ExitCode.SETTINGS, "accept its terms"),
        (403, ExitCode.SETTINGS, "HF_TOKEN"),
        (404, ExitCode.DATA, "there is no data set BoJack/MMAR"),
    ],
)
def test_a_refused_listing_is_explained(
    status: int, code: ExitCode, says: str, site: Site, tmp_path: Path, fails: Fails
) -> None:
    """Access, absence and trouble are told apart, each with what to do."""
    site.statuses["/api/datasets/BoJack/MMAR"] = [status] * 9
    arguments = ("fetch", "mmar", str(tmp_path / "m"), "--endpoint", site.base)
    assert says in fails(code, "data", *arguments)


def test_no_host_is_to_be_tried_again(site: Site, tmp_path: Path, fails: Fails) -> None:
    """A host that cannot be reached ends with 75, for both kinds of hosts."""
    for name in ("mmar", "tacos"):
        arguments = ("fetch", name, str(tmp_path / name), "--endpoint", "http://127.0.0.1:9")
        assert "run the same command again" in fails(ExitCode.TRY_AGAIN, "data", *arguments)


def test_the_token_goes_to_the_hub_and_nowhere_else(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Fails
) -> None:
    """It is sent to the endpoint, never written, and not sent unencrypted to another machine."""
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    assert 0 == fetch(site, tmp_path / "mmar")
    assert {"Bearer hf_verysecret"} == {token for _, _, token in site.asked}
    for path in (tmp_path / "mmar").rglob("*"):
        assert path.is_dir() or b"verysecret" not in path.read_bytes()
    arguments = ("fetch", "mmar", str(tmp_path / "x"), "--endpoint", "http://mirror.example")
    assert "unencrypted" in fails(ExitCode.SETTINGS, "data", *arguments)


def test_a_zenodo_record_comes_with_its_digests(site: Site, tmp_path: Path, fails: Fails) -> None:
    """TACOS: rows, metadata and a zip of clips, checked by the MD5 that Zenodo lists."""
    rows = io.StringIO()
    csv.writer(rows).writerows([("filename", "text", "onset", "offset"), ("a.mp3", "x", 0, 1)])
    clips = io.BytesIO()
    with zipfile.ZipFile(clips, "w") as zipped:
        zipped.writestr("audio/a.mp3", b"ID3")
    files = {
        "annotations_strong.csv": rows.getvalue().encode(),
        "metadata.csv": b"filename,freesound_id\na.mp3,7\n",
        "audio.zip": clips.getvalue(),
    }
    add_zenodo_record(site, "15379789", files)
    assert 0 == fetch(site, tmp_path / "t", "--delete-archives", name="tacos")
    assert (tmp_path / "t/audio/a.mp3").is_file()
    assert not (tmp_path / "t/audio.zip").exists()
    assert "cc-by-4.0" == read_json(tmp_path / "t/manifest.json")["licence"]
    assert 0 == fetch(site, tmp_path / "t", "--delete-archives", name="tacos")
    assert 1 == len(site.ranges("/api/records/15379789/files/audio.zip/content"))

    site.files["/api/records/15379789/files/metadata.csv/content"] = b"filename,freesound_id\nb,8\n"
    arguments = ("fetch", "tacos", str(tmp_path / "u"), "--endpoint", site.base, "--retries", "0")
    assert "expected" in fails(ExitCode.TRY_AGAIN, "data", *arguments)


def test_a_fetched_data_set_can_be_built_from(site: Site, tmp_path: Path) -> None:
    """MusicBench from the mirror into questions; the build says which revision it comes from."""
    source = write_music(tmp_path / "source", 12)
    clips = {
        path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob("*.wav")
    }
    rows = (source / "MusicBench_train.json").read_bytes()
    files = {"MusicBench_train.json": rows, "MusicBench.tar.gz": tarred(clips), "test.json": b""}
    add_hub_dataset(site, "amaai-lab/MusicBench", files)
    assert 0 == fetch(site, tmp_path / "m", name="musicbench")
    assert "" == (tmp_path / "m/missing.jsonl").read_text()
    output = tmp_path / "built"
    assert 0 == build(output, "--source", f"musicbench={tmp_path / 'm'}")
    assert REVISION == read_manifest(output)["sources"][0]["fetched"]["revision"]
    assert_apart(output)
    assert read_split(output)


def test_an_interruption_is_prompt_and_loses_nothing(site: Site, tmp_path: Path) -> None:
    """Ctrl-C in the middle of a slow file ends at once with 75; the next run takes the rest."""
    path = f"/datasets/BoJack/MMAR/resolve/{REVISION}/mmar-audio.tar.gz"
    files = mmar_files()
    clips = {f"audio/c{i}.wav": os.urandom(60 << 20 if i == 0 else 9) for i in range(3)}
    add_hub_dataset(site, "BoJack/MMAR", files | {"mmar-audio.tar.gz": tarred(clips)})
    site.slow.add(path)
    command = [sys.executable, "-m", "mmar_jobs", "data", "fetch", "mmar", str(tmp_path / "m")]
    with subprocess.Popen([*command, "--endpoint", site.base], stderr=subprocess.PIPE) as running:
        deadline_s = time.monotonic() + 60
        while not any(p.stat().st_size for p in (tmp_path / "m/.fetch").glob("*.part")):
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        time.sleep(0.3)
        line = other_fetch(site, tmp_path / "m")
        running.send_signal(signal.SIGINT)
        began_s = time.monotonic()
        assert 75 == running.wait(30)
        assert time.monotonic() - began_s < 3
        assert running.stderr is not None
        assert b"Traceback" not in running.stderr.read()
    assert "another fetch is under way" in line
    site.slow.clear()
    assert 0 == fetch(site, tmp_path / "m")
    assert str(site.ranges(path)[-1]).startswith("bytes=")
    assert clips["audio/c0.wav"] == (tmp_path / "m/audio/c0.wav").read_bytes()


def other_fetch(site: Site, folder: Path) -> str:
    """What a second fetch into the same folder says."""
    error = io.StringIO()
    with redirect_stderr(error):
        assert 75 == fetch(site, folder)
    return error.getvalue()


def test_an_evil_archive_stops_the_fetch(site: Site, tmp_path: Path, fails: Fails) -> None:
    """Nothing of it is unpacked and no manifest is written."""
    files = mmar_files() | {"mmar-audio.tar.gz": tarred({"audio/a.wav": b"x", "../evil": b"x"})}
    add_hub_dataset(site, "BoJack/MMAR", files)
    arguments = ("fetch", "mmar", str(tmp_path / "m"), "--endpoint", site.base)
    assert "unsafe path" in fails(ExitCode.DATA, "data", *arguments)
    assert not (tmp_path / "m/audio").exists()
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path / "m/manifest.json").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nonsense", "x"), "invalid choice"),
        (("mmar",), "FOLDER"),
        (("mmar", "x", "--workers", "0"), "--workers must be positive"),
        (("mmar", "x", "--retries", "-1"), "--retries must not be negative"),
        (("mmar", "x", "--max-unpacked-gib", "nan"), "must be positive"),
        (("audio", "x"), "--clips FILE"),
        (("mmar", "x", "--clips", "y.csv"), "--clips FILE"),
        (("audio", "x", "--clips", "y.csv", "--revision", "z"), "not for `fetch audio`"),
        (("audio", "x", "--clips", "missing.csv"), "missing.csv does not exist"),
        (("tacos", "x", "--revision", "2"), "--revision is for data sets on the Hub"),
    ],
)
def test_wrong_flags_are_one_line(
    arguments: tuple[str, ...],
    says: str,
    fails: Fails,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Exit 2 with what is wrong, before anything is downloaded."""
    monkeypatch.chdir(tmp_path)
    assert says in fails(ExitCode.SETTINGS, "data", "fetch", *arguments)
