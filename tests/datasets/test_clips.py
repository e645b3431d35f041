"""Tests of clips cut out of videos: the sound of their own second, by real yt-dlp and ffmpeg."""

import csv
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mmar_jobs.audio import decode
from mmar_jobs.cli import run_command
from mmar_jobs.datasets.clip_list import parse_clips
from mmar_jobs.datasets.clips import ClipForm, NotHad, cut
from mmar_jobs.datasets.rows import Row
from mmar_jobs.datasets.source_ids import source_ids
from mmar_jobs.errors import DataError, ExitCode
from tests.datasets.servers import Site, serving
from tests.fakes import Fails

NUM_SECONDS = 8
FLAC = ClipForm(16_000, "flac")


def tone_hz(second: int) -> int:
    """Each second of the video has a tone of its own."""
    return 400 + 300 * second


def heard_hz(path: Path, *, at_s: float = 0.5) -> float:
    """The strongest frequency of half a second around `at_s`."""
    waveform = decode(path.read_bytes(), path.name).waveform
    start = int((at_s - 0.25) * 16_000)
    spectrum = np.abs(np.fft.rfft(waveform[start : start + 8000] * np.hanning(8000)))
    return float(spectrum.argmax() * 2)


def make_video(path: Path, codec: str, *, rate_hz: int = 44_100) -> Path:
    """A video whose sound changes by the second."""
    parts = "+".join(
        f"sin(2*PI*{tone_hz(second)}*t)*between(t,{second},{second + 1}-1/{rate_hz})"
        for second in range(NUM_SECONDS)
    )
    picture = f"testsrc=size=64x48:rate=5:duration={NUM_SECONDS}"
    expression = f"0.4*({parts})"
    sound = f"aevalsrc='{expression}|{expression}':s={rate_hz}:d={NUM_SECONDS}"
    subprocess.run(
        [
            *("ffmpeg", "-v", "error", "-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", sound),
            *("-c:v", "mpeg4", "-c:a", codec, "-b:a", "128k", "-y", str(path)),
        ],
        check=True,
    )
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An mp4 with AAC."""
    return make_video(tmp_path_factory.mktemp("video") / "v.mp4", "aac")


@pytest.fixture
def site(video: Path) -> Iterator[Site]:
    """A web server with the video, and one that is private."""
    with serving(Site(files={"/v.mp4": video.read_bytes()})) as found:
        found.statuses["/private.mp4"] = [403] * 99
        yield found


def write_list(path: Path, *rows: tuple[object, ...]) -> Path:
    """A list of clips with MusicCaps' columns, with addresses in place of ids."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("url", "start_s", "end_s", "caption"), *rows])
    return path


@pytest.mark.parametrize("second", [0, 3, 6])
@pytest.mark.parametrize("form", [FLAC, ClipForm(16_000, "wav"), ClipForm(0, "flac")])
def test_a_clip_begins_at_its_own_start(
    second: int, form: ClipForm, video: Path, tmp_path: Path
) -> None:
    """The clip from second 3 holds the tone of second 3, not of 0, and ends with that of 4."""
    clip = tmp_path / f"c.{form.format}"
    cut(video, clip, start_s=second, end_s=second + 2, form=form)
    assert abs(tone_hz(second) - heard_hz(clip)) < 5
    assert abs(tone_hz(second + 1) - heard_hz(clip, at_s=1.5)) < 5
    found = decode(clip.read_bytes(), "c")
    assert abs(found.duration_s - 2) < 0.001
    expected = (44_100, 2) if form.rate_hz == 0 else (16_000, 1)
    assert expected == (found.file_rate_hz, found.num_channels)


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "libmp3lame"), ("webm", "libopus")])
def test_a_cut_is_exact_in_any_container(suffix: str, codec: str, tmp_path: Path) -> None:
    """The onset of second 5 lies within 60 ms of where it must, whatever a codec's delay."""
    name = tmp_path / ("v.mkv" if suffix == "webm" else f"v.{suffix}")
    source = make_video(name, codec, rate_hz=48_000)
    clip = tmp_path / "c.flac"
    cut(source, clip, start_s=4.5, end_s=5.5, form=FLAC)
    waveform = decode(clip.read_bytes(), "c").waveform
    change_s = next(
        start / 16_000
        for start in range(0, len(waveform) - 800, 80)
        if np.abs(np.fft.rfft(waveform[start : start + 800])).argmax() * 20 > 1750
    )
    assert abs(change_s + 0.025 - 0.5) < 0.06


def test_the_same_cut_gives_the_same_bytes(video: Path, tmp_path: Path) -> None:
    """No date and no version of a program gets into a clip."""
    for name in ("a.flac", "b.flac"):
        cut(video, tmp_path / name, start_s=1.25, end_s=2.5, form=FLAC)
    assert (tmp_path / "a.flac").read_bytes() == (tmp_path / "b.flac").read_bytes()
    assert {"a.flac", "b.flac"} == {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("data", "start_s", "reason"),
    [(None, 7, "ends 8.0"), (None, 20, "ends before 20.00 s"), (b"no video", 0, "cannot cut")],
)
def test_what_cannot_be_cut_leaves_nothing(
    data: bytes | None, start_s: float, reason: str, video: Path, tmp_path: Path
) -> None:
    """A video that ends before the clip does, or is none, is named, and there is no clip."""
    source = tmp_path / "s.mp4"
    source.write_bytes(video.read_bytes() if data is None else data)
    with pytest.raises(NotHad, match=reason):
        cut(source, tmp_path / "c.flac", start_s=start_s, end_s=start_s + 2, form=FLAC)
    assert [source] == list(tmp_path.iterdir())


def test_a_streamed_flac_is_refused_in_one_line(video: Path) -> None:
    """It states no length, which the decoder would take for 2**63 frames of memory."""
    made = subprocess.run(
        ["ffmpeg", "-v", "error", "-i", str(video), "-t", "1", "-f", "flac", "-"],
        check=True,
        capture_output=True,
    )
    with pytest.raises(DataError, match="does not state its length"):
        decode(made.stdout, "streamed.flac")


def test_a_playlist_cannot_make_ffmpeg_read_another_file(video: Path, tmp_path: Path) -> None:
    """What a stranger sends is decoded, never followed to an address."""
    with serving(Site(files={"/v.mp4": video.read_bytes()})) as site:
        source = tmp_path / "s.m3u8"
        lines = ("#EXTM3U", "#EXT-X-TARGETDURATION:8", "#EXTINF:8,", f"{site.base}/v.mp4")
        source.write_text("\n".join((*lines, "#EXT-X-ENDLIST")))
        with pytest.raises(NotHad):
            cut(source, tmp_path / "c.flac", start_s=0, end_s=1, form=FLAC)
        assert [] == site.asked


def test_clips_of_a_list_are_fetched_and_cut(site: Site, tmp_path: Path) -> None:
    """One download gives all clips of a video; what is private is listed with its reason."""
    listed = write_list(
        tmp_path / "list.csv",
        (f"{site.base}/v.mp4", 3, 5, "x"),
        (f"{site.base}/v.mp4", 6, 8, "x"),
        (f"{site.base}/v.mp4", 6, 99, "too long"),
        (f"{site.base}/v.mp4", 7, 12, "the video ends"),
        (f"{site.base}/private.mp4", 0, 2, "x"),
        (f"{site.base}/v.mp4", "", 2, "no start"),
    )
    folder = tmp_path / "clips"
    assert 0 == run_command("data", ["fetch", "audio", str(folder), "--clips", str(listed)])
    found = {path.name[-22:]: path for path in (folder / "audio").iterdir()}
    assert {"00-00-03_00-00-05.flac", "00-00-06_00-00-08.flac"} == set(found)
    assert abs(tone_hz(3) - heard_hz(found["00-00-03_00-00-05.flac"])) < 5
    assert abs(tone_hz(6) - heard_hz(found["00-00-06_00-00-08.flac"])) < 5
    entries = [json.loads(line) for line in (folder / "missing.jsonl").read_text().splitlines()]
    said = {entry["what"].rpartition("_")[0] or entry["what"]: entry["reason"] for entry in entries}
    assert 4 == len(said)
    assert "has no start_s" in said["row 7"]
    assert "lasts 93 s" in said["row 4"]
    assert any("ends 8.0" in reason for reason in said.values())
    assert any("403" in reason for reason in said.values())
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {"num_files": 2, "num_missing": 4} == {
        key: manifest["counts"][key] for key in ("num_files", "num_missing")
    }
    assert not [path for path in folder.iterdir() if path.name.startswith(".video")]


def test_clips_that_are_there_are_not_fetched_again(
    site: Site, tmp_path: Path, fails: Fails
) -> None:
    """A second run asks nothing; other forms of clips need another folder; all or nothing works."""
    listed = write_list(tmp_path / "l.csv", (f"{site.base}/v.mp4", 3, 5, "x"))
    arguments = ["fetch", "audio", str(tmp_path / "c"), "--clips", str(listed)]
    assert 0 == run_command("data", arguments)
    num_asked = len(site.asked)
    assert 0 == run_command("data", arguments)
    assert num_asked == len(site.asked)
    assert "choose another folder" in fails(ExitCode.SETTINGS, "data", *arguments, "--rate-hz", "0")
    write_list(listed, (f"{site.base}/v.mp4", 3, 5, "x"), (f"{site.base}/private.mp4", 0, 1, "x"))
    assert "not had" in fails(ExitCode.DATA, "data", *arguments, "--require-all")


def test_nothing_had_at_all_is_an_error(site: Site, tmp_path: Path, fails: Fails) -> None:
    """Exit 0 with an empty folder would look like success."""
    listed = write_list(tmp_path / "l.csv", (f"{site.base}/private.mp4", 3, 5, "x"))
    arguments = ("fetch", "audio", str(tmp_path / "c"), "--clips", str(listed))
    assert "not had" in fails(ExitCode.DATA, "data", *arguments)
    write_list(listed, ("no video", 3, 5, "x"))
    assert "names no clip (row 2" in fails(ExitCode.DATA, "data", *arguments)


def row(**values: object) -> Row:
    """A row of a list."""
    return Row(1, values)


@pytest.mark.parametrize(
    ("given", "start_s", "end_s"),
    [
        ({"ytid": "-0SdAVK79lg", "start_s": "30", "end_s": "40"}, 30, 40),
        ({"youtube_id": "-0SdAVK79lg", "start_time": 25}, 25, 35),
        ({"YTID": "-0SdAVK79lg", "start_seconds": 30.5, "end_seconds": 40.5}, 30.5, 40.5),
        ({"video_id": "-0SdAVK79lg", "start": "00:01:05", "duration": 4}, 65, 69),
        (
            {"url": "https://youtu.be/-0SdAVK79lg?t=1", "timestamp": "00:01:32,00:02:02"},
            *(92, 122),
        ),
        (
            {"url": "https://www.youtube.com/watch?a=b&v=-0SdAVK79lg", "start_s": 0.0, "end_s": 5},
            0,
            5,
        ),
    ],
)
def test_known_lists_are_read(given: dict[str, object], start_s: float, end_s: float) -> None:
    """MusicCaps, AudioCaps, AudioSet, MMAR; a clip's name tells the guard its video."""
    (clip,), bad = parse_clips([row(**given)], clip_s=10, max_clip_s=30)
    assert [] == bad
    assert (start_s, end_s) == (clip.start_s, clip.end_s)
    assert ("youtube:-0SdAVK79lg",) == source_ids("", clip.name)


def test_times_below_a_second_make_names_of_their_own() -> None:
    """Two clips of one second are two files."""
    rows = [row(ytid="-0SdAVK79lg", start_s=s, end_s=s + 1) for s in (1, 1.25, 1.5, 1.25)]
    clips, _ = parse_clips(rows, clip_s=10, max_clip_s=30)
    assert 3 == len({clip.name for clip in clips}) == len(clips)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"start_s": 1}, "has no ytid"),
        ({"ytid": "-0SdAVK79lg"}, "has no start_s"),
        ({"ytid": "-0SdAVK79lg", "start_s": ""}, "has no start_s"),
        ({"ytid": "-0SdAVK79lg", "start_s": "soon"}, "is no time"),
        ({"ytid": "-0SdAVK79lg", "start_s": -1}, "is no time"),
        ({"ytid": "-0SdAVK79lg", "start_s": "nan"}, "is no time"),
        ({"ytid": "-0SdAVK79lg", "start_s": 5, "end_s": 5}, "not after its start"),
        ({"ytid": "-0SdAVK79lg", "start_s": 5, "end_s": 36}, "lasts 31 s"),
        ({"ytid": "../../etc/pw", "start_s": 5}, "neither a YouTube id nor an address"),
        ({"ytid": ["-0SdAVK79lg"], "start_s": 5}, "must be text"),
    ],
)
def test_a_row_without_a_sure_clip_is_bad(given: dict[str, object], reason: str) -> None:
    """A start is never guessed: an earlier attempt took 0, and trained on other sounds."""
    clips, (bad,) = parse_clips([row(**given)], clip_s=10, max_clip_s=30)
    assert [] == clips
    assert reason in bad.reason
