"""Sounds made on the spot, and copies of them as they occur; no tests."""

import json
import os
import shutil
import subprocess
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from mmar_jobs.audio import MIN_CLIP_S, SAMPLE_RATE_HZ, decode
from mmar_jobs.datasets.fingerprint import Print, fingerprint

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng")

# fmt: off
WORDS = [
    "amber", "bridge", "candle", "dragon", "engine", "forest", "garden", "hammer", "island",
    "jungle", "kettle", "lantern", "mirror", "needle", "orchard", "planet", "quiver", "ribbon",
    "summer", "thunder", "umbrella", "valley", "window", "yellow", "zebra", "bottle", "carpet",
    "dollar", "feather", "ginger", "harvest", "insect", "jacket", "kitchen", "ladder", "market",
    "number", "oyster", "pepper", "quarter", "river", "saddle", "ticket", "uncle", "velvet",
    "walnut", "winter", "button", "corner",
]
# fmt: on
# What is done to a clip before LAME gets it at 32 kbit/s, and the rate it is written at.
COPIES = {
    "re-encoded": ((), 44_100),
    "shifted": (("-af", "adelay=731:all=1"), 44_100),
    "trimmed by 2 s at its start": (("-ss", "2"), 22_050),
    "trimmed by 2 s at its end": (("-af", "areverse,atrim=2,areverse"), 48_000),
}
VOICES = ("en-us", "de", "fr", "es", "it", "pl", "nl", "pt", "sv", "cs", "tr", "fi")


def melody(seed: int, seconds: float) -> NDArray[np.float32]:
    """Notes with overtones that begin and die away, and now and then a burst of noise."""
    dice = np.random.default_rng(seed)
    num = round(seconds * SAMPLE_RATE_HZ)
    sound_N = np.zeros(num)
    at_s = 0.0
    while at_s < seconds:
        length_s = dice.uniform(0.15, 0.9)
        start = round(at_s * SAMPLE_RATE_HZ)
        time_N = np.arange(min(round(length_s * SAMPLE_RATE_HZ), num - start)) / SAMPLE_RATE_HZ
        pitch_hz = 110 * 2 ** (dice.integers(0, 40) / 12)
        note_N = sum(
            dice.uniform(0.1, 1) / k * np.sin(2 * np.pi * pitch_hz * k * time_N)
            for k in range(1, dice.integers(3, 10))
        )
        if dice.random() < 0.3:
            note_N = note_N + dice.normal(0, 0.7, len(time_N))
        rise_N = np.minimum(1, time_N / 0.01) * np.exp(-time_N * dice.uniform(2, 8))
        sound_N[start : start + len(time_N)] += dice.uniform(0.2, 1) * note_N * rise_N
        at_s += dice.uniform(0.08, 0.5)
    return (0.7 * sound_N / np.abs(sound_N).max()).astype(np.float32)


def sentence(seed: int, num_words: int) -> tuple[str, str]:
    """A voice of espeak-ng, and words that no other seed has in this order."""
    dice = np.random.default_rng(seed)
    return VOICES[seed % len(VOICES)], " ".join(dice.choice(WORDS, num_words))


def speak(
    path: Path, text: str, voice: str = "en-us", *, pitch: int = 50, speed: int = 175
) -> Path:
    """Have espeak-ng say a text into a WAV file, at `speed` words a minute."""
    path.parent.mkdir(parents=True, exist_ok=True)
    how = ["-v", voice, "-p", str(pitch), "-s", str(speed), "-w", str(path)]
    subprocess.run(["espeak-ng", *how, text], check=True)
    return path


def write_wav(path: Path, waveform_N: NDArray[np.floating]) -> Path:
    """A mono WAV file at 16 kHz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(os.fspath(path), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE_HZ, 0, "NONE", ""))
        file.writeframes((waveform_N.clip(-1, 1) * 32_767).round().astype("<i2").tobytes())
    return path


def write_mp3(source: Path, target: Path, *options: str, rate_hz: int = 44_100) -> Path:
    """A copy of a sound file by ffmpeg's LAME at 32 kbit/s; `options` may cut or filter it."""
    write_mp3s(source, {target: (options, rate_hz)})
    return target


def write_mp3s(source: Path, targets: Mapping[Path, tuple[Sequence[str], int]]) -> None:
    """The same for several copies at once; each has its options and its rate in Hz."""
    command = ["ffmpeg", "-v", "error", "-y", "-i", os.fspath(source)]
    for target, (options, rate_hz) in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        command += [*options, "-ar", str(rate_hz), "-b:a", "32k", os.fspath(target)]
    subprocess.run(command, check=True)


def print_file(path: Path) -> Print:
    """The print of a sound file."""
    return fingerprint(decode(path.read_bytes(), path.name).waveform)


def prints_of(clip: Path, kinds: Sequence[str], folder: Path) -> dict[str, Print]:
    """The prints of copies of a clip, by the names in COPIES."""
    targets = {folder / f"{clip.stem}-{i}.mp3": COPIES[kind] for i, kind in enumerate(kinds)}
    write_mp3s(clip, targets)
    found = dict(zip(kinds, map(print_file, targets), strict=True))
    for path in targets:
        path.unlink()
    return found


def debian_sounds() -> list[Path]:
    """Recordings that Debian's sound packages ship, those of at least a tenth of a second."""
    folders = (Path("/usr/share/sounds/freedesktop/stereo"), Path("/usr/share/sounds/alsa"))
    found = sorted(path for folder in folders for path in folder.glob("*.[ow]*"))
    return [path for path in found if soundfile.info(path).duration >= MIN_CLIP_S]


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    """Questions as JSON lines; what a row leaves out does not matter here."""
    defaults = {"text": "What?", "choices": ["x", "y"], "answer": "x"}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(defaults | row)}\n" for row in rows))
    return path
