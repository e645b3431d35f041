"""Small data sets on disk, and builds of them; no tests."""

import csv
import json
import os
import random
import wave
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mmar_jobs.cli import run_command
from mmar_jobs.datasets.mmar import parse_questions
from mmar_jobs.records import Question

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
GOOD: dict[str, object] = {"audio": "a.wav", "text": "?", "choices": ["x", "y"], "answer": "x"}


def write_clip(path: Path, seed: int) -> Path:
    """A clip of its own for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(os.fspath(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(random.Random(seed).randbytes(3200))
    return path


def build(output: Path, *arguments: str) -> int:
    """Run the command, in this process unless --jobs says otherwise."""
    return run_command("data", ["build", str(output), "--jobs", "1", *arguments])


def read_split(output: Path, name: str = "train") -> list[Question]:
    """A split, as ingest parses it."""
    path = output / f"{name}.jsonl"
    rows = list(parse_questions(path.read_bytes().splitlines(), "x")) if path.exists() else []
    assert all(isinstance(row, Question) for row in rows), rows
    return [row for row in rows if isinstance(row, Question)]


def read_manifest(output: Path) -> Any:
    """What the build says of itself."""
    return json.loads((output / "manifest.json").read_text())


def left_out(output: Path) -> list[dict[str, str]]:
    """The rows left out."""
    return [json.loads(line) for line in (output / "left_out.jsonl").read_text().splitlines()]


def all_bytes(folder: Path) -> dict[str, bytes]:
    """Every file."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def write_counting(folder: Path, num_clips: int, *, per_clip: int = 2) -> Path:
    """A CountingQA folder; each clip has some questions, answers are skewed."""
    rows = []
    dice = np.random.default_rng(5)
    for i in range(num_clips):
        sound = f"concat_{i}.wav"
        write_clip(folder / "counting_audios" / sound, i)
        for j in range(per_clip):
            count = WORDS[1 + min(8, int(dice.geometric(0.28)))]
            turns = [
                {"from": "human", "value": f"<sound>\nHow many times does event {j} occur?"},
                {"from": "gpt", "value": f"It occurs {count} times in this audio."},
            ]
            rows.append({"id": f"{i}", "sound": sound, "duration": 0.1, "conversations": turns})
    (folder / "CountingQA.json").write_text(json.dumps(rows))
    return folder


def write_music(folder: Path, num_videos: int) -> Path:
    """A MusicBench folder: each video with an original and an augmented clip."""
    rows = []
    for i in range(num_videos):
        for j, location in enumerate((f"data/video{i:06d}.wav", f"data_aug2/video{i:06d}_1.wav")):
            write_clip(folder / "datashare" / location, 10_000 + 2 * i + j)
            key = ["CDEFGAB"[i % 7], ("major", "minor")[i % 2]]
            caption = f"A {('rock', 'jazz')[i % 2]} song, number {i}. " + "More. " * (i % 9)
            rows.append(
                {"location": location, "main_caption": caption, "bpm": 60 + 7 * (i % 15)}
                | {"key": key, "keyprob": [0.9]}
            )
    path = folder / "MusicBench_train.json"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def write_tacos(folder: Path, num_recordings: int) -> Path:
    """A TACOS folder: two clear events a recording, two subclasses."""
    rows: list[tuple[object, ...]] = [("filename", "text", "onset", "offset")]
    meta: list[tuple[object, ...]] = [("filename", "freesound_id", "superclass", "subclass")]
    for i in range(num_recordings):
        name = f"{i}.wav"
        write_clip(folder / "audio" / name, 50_000 + i)
        rows.append((name, f"Event {i} begins.", 0.0, 1.0))
        rows.append((name, f"Event {i} ends.", 2.0, 3.0))
        meta.append((name, i // 2, "Nature", f"Sub {i % 2}"))
    for file, lines in (("annotations_strong.csv", rows), ("metadata.csv", meta)):
        with (folder / file).open("w", newline="") as opened:
            csv.writer(opened).writerows(lines)
    return folder


def table(folder: Path, rows: Iterable[dict[str, object]]) -> str:
    """A table source with a clip `a.wav`."""
    write_clip(folder / "a.wav", 1)
    path = folder / "questions.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return f"table={folder}"


def sources(folders: dict[str, Path], ratio: str = "") -> list[str]:
    """The flags for all of them."""
    return [
        flag for kind, folder in folders.items() for flag in ("--source", f"{kind}={folder}{ratio}")
    ]


def sides(output: Path) -> tuple[list[Question], list[Question]]:
    """Training and held-out questions."""
    return read_split(output), read_split(output, "heldout")


def assert_apart(output: Path) -> None:
    """No file, name or source is in both splits."""
    found = []
    for questions in sides(output):
        audio = {(output / question.audio).read_bytes() for question in questions}
        names = {question.audio for question in questions}
        found.append(audio | names | {s for q in questions for s in q.source_ids})
    assert set() == found[0] & found[1]
