"""Tests on real sound: speech of espeak-ng and recordings of Debian's sound packages.

They need the Debian packages espeak-ng, sound-theme-freedesktop and alsa-utils, and are skipped
where those are absent.
"""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mmar_jobs.artifact import Artifact, find_artifact
from mmar_jobs.audio import SAMPLE_RATE_HZ, Clip, canary_clip, decode, num_audio_tokens
from mmar_jobs.cli import run_command
from mmar_jobs.encode import encode_prompt, load_processor
from mmar_jobs.engine import Sampling
from mmar_jobs.engine.local import LocalEngine, open_local_engine
from mmar_jobs.errors import ExitCode
from mmar_jobs.layout import BENCHMARK, predictions_key, questions_key
from mmar_jobs.prompt import render
from mmar_jobs.questions import read_split
from mmar_jobs.recipes import EngineSettings
from mmar_jobs.records import Candidate
from mmar_jobs.store import open_store
from tests.fakes import Fails, make_question, make_request, sound_bytes

ROOT = Path(__file__).resolve().parent.parent
EMBEDDED_MODEL = ROOT / "mmar_jobs" / "tiny" / "weights"
RECORDINGS = (
    Path("/usr/share/sounds/freedesktop/stereo/bell.oga"),
    Path("/usr/share/sounds/freedesktop/stereo/phone-incoming-call.oga"),
    Path("/usr/share/sounds/freedesktop/stereo/audio-test-signal.oga"),
    Path("/usr/share/sounds/alsa/Front_Center.wav"),
    Path("/usr/share/sounds/alsa/Noise.wav"),
)
SENTENCES = (("one, two, three, four", "en-us"), ("Wo ist der Bahnhof?", "de"), ("bonjour", "fr"))
OTHER_SENTENCES = (
    ("the cat sat upon the mat", "en-us"),
    ("rain is falling on the roof tonight", "en-gb"),
    ("der Zug kommt heute später", "de"),
    ("il fait très beau ce matin", "fr"),
)
# libsndfile's name, file rate, channels: every format at low and high rates, mono and stereo.
TARGETS = (
    ("WAV", 8_000, 1),
    ("WAV", 44_100, 2),
    ("FLAC", 16_000, 1),
    ("FLAC", 48_000, 2),
    ("OGG", 22_050, 2),
    ("OGG", 48_000, 1),
    ("MP3", 8_000, 1),
    ("MP3", 44_100, 2),
)
# The embedded model was taught this question, and finds something to answer to any sound.
QUESTION = {
    "question": "Which pitches come first and second?",
    "choices": ["low then mid", "mid then low", "high then low", "low then high"],
    "answer": "low then mid",
}
MAX_LOSS_S = 0.15  # what MP3 may add at its ends, at 8 kHz


@dataclass(frozen=True)
class Sound:
    """A real sound as some file holds it."""

    name: str
    data: bytes
    rate_hz: int
    num_channels: int
    duration_s: float


def speak(folder: Path, text: str, voice: str) -> Path:
    """Have espeak-ng say a sentence; its WAV file."""
    path = folder / f"{text.split(maxsplit=1)[0].lower()}-{voice}.wav"
    subprocess.run(["espeak-ng", "-v", voice, "-w", str(path), text], check=True)
    return path


def resampled(frames_NC: np.ndarray, rate_hz: int, to_hz: int) -> np.ndarray:
    """The frames at another rate by linear interpolation: this is not what is tested."""
    num = round(len(frames_NC) * to_hz / rate_hz)
    places = np.arange(num) * rate_hz / to_hz
    columns = [np.interp(places, np.arange(len(frames_NC)), column) for column in frames_NC.T]
    return np.stack(columns, axis=1).astype(np.float32)


def converted(path: Path, format_: str, rate_hz: int, num_channels: int) -> Sound:
    """A recording in another format, rate and number of channels."""
    frames_NC, from_hz = soundfile.read(path, dtype="float32", always_2d=True)
    frames_NC = resampled(frames_NC, from_hz, rate_hz)
    if frames_NC.shape[1] != num_channels:
        frames_NC = np.repeat(frames_NC[:, :1], num_channels, axis=1)
    name = f"{path.stem}-{rate_hz}-{num_channels}.{format_.lower()}"
    data = sound_bytes(frames_NC, rate_hz, format_)
    return Sound(name, data, rate_hz, num_channels, len(frames_NC) / rate_hz)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Speech and recordings as their packages ship them."""
    missing = [str(path) for path in RECORDINGS if not path.exists()]
    if shutil.which("espeak-ng") is None:
        missing.append("espeak-ng")
    if missing:
        pytest.skip(
            f"no real sound here, missing {', '.join(missing)}: "
            "apt-get install espeak-ng sound-theme-freedesktop alsa-utils"
        )
    folder = tmp_path_factory.mktemp("speech")
    return [*RECORDINGS, *(speak(folder, *sentence) for sentence in SENTENCES)]


@pytest.fixture(scope="module")
def sounds(originals: list[Path]) -> list[Sound]:
    """Every format, rate and number of channels, each of another recording or sentence."""
    return [converted(originals[i], *target) for i, target in enumerate(TARGETS)]


@pytest.fixture(scope="module")
def engine(model_folder: Path) -> LocalEngine:
    """A random tiny model."""
    return open_local_engine(model_folder, None, EngineSettings(threads=1))


def loudness(clip: Clip) -> float:
    """Root mean square of a clip."""
    return float(np.sqrt((clip.waveform**2).mean()))


def test_shipped_files_decode(originals: list[Path]) -> None:
    """What Debian ships and espeak-ng writes is heard in full."""
    for path in originals:
        with soundfile.SoundFile(path) as file:
            expected_s = file.frames / file.samplerate
        clip = decode(path.read_bytes(), path.name)
        assert abs(clip.duration_s - expected_s) < 0.01
        assert 0.001 < loudness(clip) < 1


def test_converted_files_decode(sounds: list[Sound]) -> None:
    """Through every format, rate and number of channels the sound keeps length and strength."""
    for sound in sounds:
        clip = decode(sound.data, sound.name)
        assert (sound.rate_hz, sound.num_channels) == (clip.file_rate_hz, clip.num_channels)
        assert abs(clip.duration_s - sound.duration_s) <= MAX_LOSS_S
        assert 0.001 < loudness(clip) < 1


def test_the_same_sentence_sounds_the_same(originals: list[Path]) -> None:
    """A sentence is nearly the same waveform in all formats: nothing is cut or distorted."""
    speech = originals[-1]
    reference = decode(converted(speech, "WAV", 22_050, 1).data, "wav").waveform
    for format_ in ("FLAC", "OGG", "MP3"):
        waveform = decode(converted(speech, format_, 22_050, 2).data, format_).waveform
        num = min(len(reference), len(waveform))
        correlation = np.correlate(waveform[:num], reference[:num], mode="full").max()
        assert correlation > 0.95 * (reference**2).sum()


def test_prompts_hold_every_second(sounds: list[Sound], model_folder: Path) -> None:
    """The real processor gives each clip as many audio tokens as it lasts."""
    processor = load_processor(model_folder)
    for sound in sounds:
        clip = decode(sound.data, sound.name)
        encoded = encode_prompt(
            processor, render(make_question(), "v9"), clip, question_id=sound.name
        )
        expected = num_audio_tokens(round(clip.duration_s * SAMPLE_RATE_HZ))
        assert expected == encoded.num_audio_tokens
        assert abs(expected - 13 * clip.duration_s) < 2


def test_engine_answers_about_real_sound(sounds: list[Sound], engine: LocalEngine) -> None:
    """One batch of all of them, two draws each; a sound's answers do not hang on the others."""
    sampling = Sampling(
        temperature=0.9, top_p=0.95, top_k=0, repetition_penalty=1, max_tokens=6, seed=0
    )
    clips = [decode(sound.data, sound.name) for sound in sounds] + [canary_clip()]
    requests = [make_request(make_question(f"q{i}"), (0, 1), clip) for i, clip in enumerate(clips)]
    answers = engine.answer(requests, sampling, lambda _: None)
    for request, completions in zip(requests, answers, strict=True):
        expected = num_audio_tokens(len(request.clip.waveform))
        assert [expected] * 2 == [completion.audio_tokens for completion in completions]
    [alone] = engine.answer(requests[3:4], sampling, lambda _: None)
    assert [one.text for one in answers[3]] == [one.text for one in alone]


def write_questions(folder: Path, sounds: list[Sound], split: str) -> Path:
    """Questions in the benchmark's format about these sounds."""
    (folder / "audio").mkdir(exist_ok=True)
    lines = []
    for index, sound in enumerate(sounds):
        (folder / "audio" / sound.name).write_bytes(sound.data)
        row = {
            "id": f"{split}-{index}",
            "audio_path": f"./audio/{sound.name}",
            **QUESTION,
        }
        lines.append(json.dumps(row))
    (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder / f"{split}.jsonl"


def candidates_of(artifact: Artifact) -> list[Candidate]:
    """The candidates in an artifact of predictions."""
    names = [shard.name for shard in artifact.manifest.shards if shard.name.startswith("part-")]
    return [one for name in names for one in artifact.read_records(name, Candidate)]


def test_the_benchmark_is_heard_in_training(
    sounds: list[Sound], originals: list[Path], tmp_path: Path, fails: Fails
) -> None:
    """A recording in another format and rate is still the same recording."""
    copies = [converted(path, "FLAC", 32_000, 1) for path in originals[:4]]
    place = ["--store", str(tmp_path / "store"), "--run-id", "real"]
    questions = ["--questions", str(write_questions(tmp_path, copies, "train"))]
    questions += ["--benchmark", str(write_questions(tmp_path, sounds, "benchmark"))]
    line = fails(ExitCode.DATA, "ingest", *place, *questions)
    assert "contaminated by the benchmark: train-" in line
    assert "sounds like benchmark-" in line


def test_infer_hears_real_sound(sounds: list[Sound], tmp_path: Path) -> None:
    """The embedded model answers a benchmark of real sounds, by the commands that a user runs."""
    speech = [speak(tmp_path, *sentence) for sentence in OTHER_SENTENCES]
    others = [converted(path, "FLAC", 32_000, 1) for path in speech]
    place = ["--store", str(tmp_path / "store"), "--run-id", "real"]
    model = ["--model", str(EMBEDDED_MODEL)]
    questions = ["--questions", str(write_questions(tmp_path, others, "train"))]
    questions += ["--benchmark", str(write_questions(tmp_path, sounds, "benchmark"))]
    split = ["--data.heldout-fraction", "0.5", "--strict"]
    assert 0 == run_command("ingest", [*place, *questions, *split])
    settings = ["--sampling.max-tokens", "96", "--engine.threads", "1"]
    assert 0 == run_command("infer", [*place, *model, *settings])
    assert 0 == run_command("submit", place)
    store = open_store(str(tmp_path / "store"))
    ingested = find_artifact(store, questions_key("real"))
    predictions = find_artifact(store, predictions_key("real", 0))
    assert ingested is not None
    assert predictions is not None
    length_s = {question.id: question.audio_s for question in read_split(ingested, BENCHMARK)}
    found = candidates_of(predictions)
    assert len(sounds) == len(found)
    for candidate in found:
        num_samples = round(length_s[candidate.question_id] * SAMPLE_RATE_HZ)
        assert num_audio_tokens(num_samples) == candidate.audio_tokens
