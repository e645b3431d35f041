"""Write the synthetic world as files: train, held-out and benchmark questions over real WAV files.

Not here: what sounds and questions are (world.py, questions.py). The reference traces stay out of
the files: whoever trains on them has to find the reasoning.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mmar_jobs.audio import decode
from mmar_jobs.datasets.fingerprint import Print, fingerprint
from mmar_jobs.datasets.guard import find_sounds
from mmar_jobs.tiny.dice import Dice
from mmar_jobs.tiny.questions import Asked, draw_clip_with_questions
from mmar_jobs.tiny.world import RATES_HZ, Clip, wav_bytes

QUESTIONS_PER_CLIP: Final = 2


@dataclass(frozen=True, slots=True)
class TinyWorld:
    """Where the files are; `folder` is the audio root of all three."""

    folder: Path
    train: Path
    heldout: Path
    benchmark: Path


def build_world(
    folder: Path, *, seed: int, num_train: int, num_heldout: int, num_benchmark: int
) -> TinyWorld:
    """Write three sets of questions in MMAR-meta format and their clips, the same on every machine.

    Two questions share a clip. No two sets do, nor any stretch that the guard hears: this world is
    so small that of 500,000 pairs one sounds the same by chance. `num_*` count questions.
    """
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    paths = {}
    heard: dict[str, Print] = {}
    sizes = {"train": num_train, "heldout": num_heldout, "benchmark": num_benchmark}
    for split, num_questions in sizes.items():
        rows = _split_rows(folder, seed, split, num_questions, heard)
        paths[split] = folder / f"{split}.jsonl"
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        paths[split].write_text("".join(lines), encoding="utf-8", newline="\n")
    return TinyWorld(folder, paths["train"], paths["heldout"], paths["benchmark"])


def draw_clip(
    *key: str | int, weights: dict[str, int] | None = None
) -> tuple[Clip, tuple[Asked, ...]]:
    """One clip and its questions, named by `key`; also what the warm start learns from."""
    dice = Dice(*key)
    events, asked = draw_clip_with_questions(
        dice, num_questions=QUESTIONS_PER_CLIP, weights=weights
    )
    name = "/".join(map(str, key))
    return Clip(name, events, dice.one_of(RATES_HZ), dice.between(1, 2)), asked


def _split_rows(
    folder: Path, seed: int, split: str, num_questions: int, heard: dict[str, Print]
) -> list[dict[str, Any]]:
    """Write the clips of one set, unlike those in `heard`, add them to it, and give their rows."""
    drawn: dict[str, tuple[Asked, ...]] = {}
    prints: dict[str, Print] = {}
    wanted = dict.fromkeys(range(-(-num_questions // QUESTIONS_PER_CLIP)), 0)
    while wanted:
        names = {index: f"tiny-{split}-{seed}-{index:05d}" for index in wanted}
        for index, name in names.items():
            again = [wanted[index]] if wanted[index] else []
            clip, asked = draw_clip(seed, split, index, *again)
            data = wav_bytes(clip)
            (folder / "audio" / f"{name}.wav").write_bytes(data)
            drawn[name], prints[name] = asked, fingerprint(decode(data, name).waveform)
        refused = find_sounds({name: prints[name] for name in names.values()}, heard)
        wanted = {index: wanted[index] + 1 for index, name in names.items() if name in refused}
    heard |= prints
    rows = [
        _row(name, place, question)
        for name, asked in drawn.items()
        for place, question in enumerate(asked)
    ]
    return rows[:num_questions]


def _row(name: str, place: int, question: Asked) -> dict[str, Any]:
    return {
        "id": f"{name}-{place}-{question.family}",
        "audio_path": f"./audio/{name}.wav",
        "question": question.text,
        "choices": list(question.choices),
        "answer": question.answer,
        "modality": "sound",
        "category": question.category,
        "sub-category": question.sub_category,
        "language": None,
        "source": "synthetic",
        "url": "",
        "timestamp": "",
    }
