"""The guard's promises, measured on many clips; the figures are printed.

Copies are found, different clips are not taken for copies, and 100,000 clips take minutes.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmar_jobs.audio import SAMPLE_RATE_HZ, decode
from mmar_jobs.datasets.fingerprint import FRAME_S
from mmar_jobs.datasets.near import Index, is_printable
from tests.datasets.sound_cases import (
    COPIES,
    debian_sounds,
    melody,
    needs_espeak,
    needs_ffmpeg,
    print_file,
    prints_of,
    sentence,
    speak,
    write_wav,
)

ROOT = Path(__file__).resolve().parent.parent.parent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@needs_ffmpeg
@needs_espeak
def test_recall_and_false_alarms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At least 99 % of all copies are found, and no two of 150 different clips are taken for one.

    Speech in 12 voices, each sentence at a pitch of its own; music; and Debian's sounds in a row.
    """
    clips = different_clips(tmp_path)
    made = [print_file(clip) for clip in clips]
    index = Index(made)
    assert all(map(is_printable, made))
    alarms = [
        (clips[mine].stem, clips[other].stem, match)
        for mine, other, match in index.search(made)
        if mine < other
    ]
    asked = [prints_of(clip, list(COPIES), tmp_path) for clip in clips]
    recall: dict[str, float] = {}
    for kind in COPIES:
        found = list(index.search([copies[kind] for copies in asked]))
        recall[kind] = sum(mine == other for mine, other, _ in found) / len(clips)
        alarms += [(clips[i].stem, clips[j].stem, match) for i, j, match in found if i != j]
    num_pairs = len(clips) * (len(clips) - 1) // 2
    with capsys.disabled():
        print(  # noqa: T201 - the figures of README.md
            f"\n{len(clips)} clips of {sum(p.num_frames for p in made) * FRAME_S:.0f} s in all: ",
            *(f"{share:.1%} {kind}, " for kind, share in recall.items()),
            f"{len(alarms)} false alarms in {num_pairs} pairs and their copies",
            sep="",
        )
    assert num_pairs > 10_000
    assert min(recall.values()) >= 0.99
    assert [] == alarms


def different_clips(folder: Path) -> list[Path]:
    """Clips that share nothing, as WAV files."""
    clips = []
    for i in range(72):
        voice, words = sentence(i, 22)
        path = folder / f"speech{i}.wav"
        clips.append(speak(path, words, voice, pitch=20 + 12 * (i // 12), speed=130 + 9 * (i % 7)))
    clips += [write_wav(folder / f"music{i}.wav", melody(i, 10 + i % 7)) for i in range(72)]
    # One package ships the other's recordings of channels under another name.
    recordings = [path for path in debian_sounds() if not path.stem.startswith("audio-")]
    waves = [decode(path.read_bytes(), path.name).waveform for path in recordings]
    waves = [wave for wave in waves if len(wave) > 0.9 * SAMPLE_RATE_HZ]
    for i, start in enumerate(range(0, len(waves), 5)):
        gap = np.zeros(4_000, np.float32)
        row = np.concatenate([part for wave in waves[start : start + 5] for part in (wave, gap)])
        clips.append(write_wav(folder / f"recorded{i}.wav", row))
    return clips


@needs_espeak
def test_a_hundred_thousand_clips_in_ten_minutes(capsys: pytest.CaptureFixture[str]) -> None:
    """1,000 benchmark clips against 100,000 of 10 to 30 s: 100 copies are found, nothing else.

    On one core, in memory that does not grow with the clips but for their rows.
    """
    arguments = [sys.executable, "-m", "tests.datasets.guard_load", "100000"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout)
    with capsys.disabled():
        print(f"\n100,000 clips against 1,000: {figures}")  # noqa: T201 - the same
    assert figures["cpu_s"] < 600
    assert figures["peak_mb"] < 800
    assert (100, 0) == (figures["num_copies_found"], figures["num_others_found"])
