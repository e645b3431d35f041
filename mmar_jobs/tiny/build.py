"""Write the synthetic world as files: train, held-out and benchmark questions over real WAV files.

Not here: what sounds and questions are (world.py, questions.py). The reference traces stay out of
the files: whoever trains on them has to find the reasoning.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

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

    Two questions share a clip, no two sets do. `num_*` count questions.
    """
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    paths = {}
    sizes = {"train": num_train, "heldout": num_heldout, "benchmark": num_benchmark}
    for split, num_questions in sizes.items():
        rows = _split_rows(folder, seed, split, num_questions)
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


def _split_rows(folder: Path, seed: int, split: str, num_questions: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for index in range(-(-num_questions // QUESTIONS_PER_CLIP)):
        clip, asked = draw_clip(seed, split, index)
        name = f"tiny-{split}-{seed}-{index:05d}"
        (folder / "audio" / f"{name}.wav").write_bytes(wav_bytes(clip))
        rows += [_row(name, place, question) for place, question in enumerate(asked)]
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
