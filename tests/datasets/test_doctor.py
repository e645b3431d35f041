"""`data doctor` on one clip of every kind; real sounds through doctor, guard and build."""

import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from mmar_jobs.cli import run_command
from mmar_jobs.datasets.doctor import nearest_copies
from mmar_jobs.datasets.fingerprint import fingerprint
from mmar_jobs.errors import ExitCode
from mmar_jobs.progress import no_bar
from tests.datasets.sound_cases import needs_espeak, needs_ffmpeg
from tests.fakes import Fails
from tests.test_real_sound import RECORDINGS

RATE_HZ = 16_000
SENTENCES = (
    "the cat sat upon the mat and looked at the moon",
    "rain is falling on the roof tonight and tomorrow",
    "how many birds are singing in the garden of my house",
    "one two three four five six seven eight nine ten",
)


def noise(seed: int, length_s: float = 3.0) -> NDArray[np.float32]:
    """Bursts of noise of changing pitch, as unlike from seed to seed as recordings are."""
    generator = np.random.default_rng(seed)
    num = int(length_s * RATE_HZ)
    waveform = np.zeros(num)
    for start in range(0, num, RATE_HZ // 8):
        hz = generator.uniform(150, 3000)
        at = np.arange(min(RATE_HZ // 8, num - start)) / RATE_HZ
        waveform[start : start + len(at)] = np.sin(2 * math.pi * hz * at) * generator.uniform(0, 1)
    return (0.3 * waveform + 0.01 * generator.standard_normal(num)).astype(np.float32)


def write_rows(folder: Path, names: list[str], prefix: str = "q") -> Path:
    """One question about each clip."""
    rows = [
        {
            "id": f"{prefix}{index}",
            "audio_path": f"audio/{name}",
            "question": "What is heard?" if index else "仔细听这段录音，请问你听到的是什么声音？",
            "choices": ["a bell", "a voice"],
            "answer": "a bell",
            "language": None if index else "zh",
        }
        for index, name in enumerate(names)
    ]
    path = folder / "questions.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Lines 1 and 2 are good; each other line has something else to remark."""
    clips = {
        "good.wav": noise(1),
        "better.flac": noise(2),
        "loud.wav": np.clip(20 * noise(3), -1, 1),
        "quiet.wav": 0.008 * noise(4),
        "pause.wav": np.concatenate([noise(5, 0.5), np.zeros(15 * RATE_HZ, np.float32)]),
        "silent.wav": np.zeros(2 * RATE_HZ, np.float32),
        "long.wav": noise(6, 31.0),
        "offset.wav": noise(7) + 0.05,
        "padded.wav": noise(8, 30.3),
    }
    (tmp_path / "audio").mkdir()
    for name, waveform in clips.items():
        soundfile.write(tmp_path / "audio" / name, waveform, RATE_HZ)
    shutil.copy(tmp_path / "audio/good.wav", tmp_path / "audio/again.wav")
    # Quieter and in a noise of its own: other bytes, the same sound.
    copy = 0.4 * noise(2) + 0.001 * np.random.default_rng(9).standard_normal(3 * RATE_HZ)
    soundfile.write(tmp_path / "audio/copy.ogg", copy, RATE_HZ)
    whole = (tmp_path / "audio/good.wav").read_bytes()
    (tmp_path / "audio/cut.wav").write_bytes(whole[: len(whole) // 2])
    return write_rows(tmp_path, [*clips, "again.wav", "copy.ogg", "cut.wav", "missing.wav"])


def diagnosis(questions: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    """What `data doctor --json` prints, whatever it thinks of it."""
    run_command("data", ["doctor", str(questions), "--jobs", "1", "--json", *flags])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_every_kind_is_remarked_at_its_line(
    questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Good clips get no remark, each of the others its own, and nothing else."""
    with questions.open("a") as file:
        file.write("{nonsense\n")
    found = diagnosis(questions, capsys)
    kinds: dict[int, set[str]] = {}
    for remark in found["remarks"]:
        kinds.setdefault(remark["line_number"], set()).add(remark["kind"])
    unusable = {"unusable clip"}
    assert kinds == {
        3: {"clipped"},
        4: {"quiet"},
        5: {"mostly silent"},
        6: unusable,
        7: unusable,
        8: {"DC offset"},
        10: {"same file"},
        11: {"near copy"},
        12: unusable,
        13: unusable,
        14: {"no question"},
    }
    texts = {remark["line_number"]: remark["text"] for remark in found["remarks"]}
    assert "audio/silent.wav is silent" in texts[6]
    assert "audio/long.wav lasts 31.0 s, at most 30 s are used" in texts[7]
    assert "its mean is 5.0% of full scale and not 0" in texts[8]
    assert "has the bytes of audio/good.wav (line 1)" in texts[10]
    assert "sound like audio/better.flac (line 2)" in texts[11]


def test_measures_are_those_of_the_clips(
    questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lengths, tokens at 13 a second, rates, languages, scripts and choices add up."""
    found = diagnosis(questions, capsys)
    # again.wav has the bytes of good.wav, cut.wav and missing.wav cannot be examined.
    assert (13, 10) == (found["num_rows"], found["num_clips"])
    assert 13 * found["total_s"] == pytest.approx(found["audio_tokens"], abs=8)
    measures = {one["name"]: one for one in found["measures"]}
    assert [2.0, 31.0] == [measures["length, s"]["least"], measures["length, s"]["most"]]
    assert {"16000": 10} == found["file_rates_hz"]
    assert {"Latin": 12, "Han or Kana": 1} == found["scripts"]
    assert {"2": 13} == found["num_choices"]
    assert {"zh": 1, "not named": 12} == found["languages"]


def test_a_row_that_cannot_be_used_is_an_error(questions: Path, fails: Fails) -> None:
    """Exit 3 with the number of rows; the table has been printed before."""
    line = fails(ExitCode.DATA, "data", "doctor", str(questions), "--jobs", "1")
    assert "4 of 13 rows" in line
    assert "mend or remove them" in line


def test_the_table_names_what_is_unusable_first(
    questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A long list of oddities must not hide what stops a run."""
    run_command("data", ["doctor", str(questions), "--jobs", "1"])
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if line.startswith("line ")]
    assert all("unusable clip" in line for line in told[:4])
    assert not any("unusable clip" in line for line in told[4:])


def test_a_longer_limit_is_obeyed(questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--max-clip-s is the caller's, as in ingest."""
    found = diagnosis(questions, capsys, "--max-clip-s", "60")
    assert 7 not in {remark["line_number"] for remark in found["remarks"]}


def test_an_empty_file_is_one_line(tmp_path: Path, fails: Fails) -> None:
    """There is nothing to examine."""
    (tmp_path / "q.jsonl").write_text("")
    assert "holds no question" in fails(ExitCode.DATA, "data", "doctor", str(tmp_path / "q.jsonl"))


def test_copies_name_the_earlier_clip() -> None:
    """Of three copies the second and third are told, each with one that stands before it."""
    prints = {
        name: fingerprint(noise(1) * level) for name, level in (("a", 1), ("b", 0.5), ("c", 0.7))
    }
    prints["d"] = fingerprint(noise(2))
    found = nearest_copies(prints, no_bar)
    assert {"b", "c"} == set(found)
    assert "a" == found["b"][0]
    assert found["c"][0] in {"a", "b"}


def test_the_page_shows_pictures_and_remarks(questions: Path, tmp_path: Path) -> None:
    """Each picture has a text alternative; hostile names are text; equal runs, equal pages."""
    bad = tmp_path / "audio" / "<script>alert(1).wav"
    bad.write_bytes(b"no sound")
    with questions.open("a") as file:
        row = {"id": "x", "audio_path": f"audio/{bad.name}", "question": "?", "choices": ["a", "b"]}
        file.write(json.dumps(row | {"answer": "a"}) + "\n")
    pages = []
    for name in ("one.html", "two.html"):
        run_command(
            "data", ["doctor", str(questions), "--jobs", "1", "--html", str(tmp_path / name)]
        )
        pages.append((tmp_path / name).read_text())
    assert pages[0] == pages[1]
    assert "<script" not in pages[0]
    assert 4 == pages[0].count('role="img"')
    assert "5 of 14 rows cannot be used" in pages[0]


@needs_espeak
@needs_ffmpeg
def test_real_sounds_pass_doctor_guard_and_build(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Fails
) -> None:
    """Speech by espeak-ng to learn from, a Debian package's sounds as the benchmark."""
    missing = [path for path in RECORDINGS if not path.exists()]
    if missing:
        pytest.skip(f"no recordings here: {missing[0]}: apt-get install sound-theme-freedesktop")
    speech, recordings = tmp_path / "speech", tmp_path / "recordings"
    for folder in (speech, recordings):
        (folder / "audio").mkdir(parents=True)
    for index, sentence in enumerate(SENTENCES):
        target = str(speech / f"audio/{index}.wav")
        subprocess.run(["espeak-ng", "-v", "en-us", "-w", target, sentence], check=True)
    for path in RECORDINGS:
        shutil.copy(path, recordings / "audio")
    train = write_rows(speech, [f"{index}.wav" for index in range(len(SENTENCES))], "speech-")
    benchmark = write_rows(recordings, [path.name for path in RECORDINGS])
    odd = [diagnosis(questions, capsys)["remarks"] for questions in (train, benchmark)]
    kinds = [[remark["kind"] for remark in remarks] for remarks in odd]
    assert [[], ["near copy"]] == kinds
    # Two packages ship one recording: as WAV and as Vorbis they correlate by 0.99.
    assert "Noise.wav" in odd[1][0]["text"]
    assert "audio-test-signal.oga" in odd[1][0]["text"]
    guard = ["guard", str(train), "--benchmark", str(benchmark), "--jobs", "1"]
    assert 0 == run_command("data", guard)
    source = ["--source", f"table={speech}", "--heldout-share", "0.25"]
    assert 0 == run_command("data", ["build", str(tmp_path / "built"), *source])
    encode = ["ffmpeg", "-v", "error", "-i", str(RECORDINGS[3]), "-b:a", "32k"]
    subprocess.run([*encode, str(speech / "audio/0.mp3")], check=True)
    train.write_text(train.read_text().replace("audio/0.wav", "audio/0.mp3"))
    assert "1 of 4 rows" in fails(ExitCode.DATA, "data", *guard)
