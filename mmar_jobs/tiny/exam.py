"""Measure a tiny model on a held-out set built for it, with sound and with the sound removed.

Not here: the gate that compares parent and child (stages/evaluate). This one decodes greedily with
transformers' own generate, so that it depends on nothing that it could be used to check.
"""

import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from transformers import Qwen3OmniMoeThinkerForConditionalGeneration

from mmar_jobs.audio import decode
from mmar_jobs.records import Question
from mmar_jobs.tiny.build import build_world
from mmar_jobs.tiny.lessons import Lesson, Teacher, prompt_batch

MAX_NEW_TOKENS: Final = 64
_BATCH_SIZE: Final = 128


def examine(model_folder: Path, *, seed: int, num_questions: int = 1024) -> dict[str, Any]:
    """Accuracy overall and by family, of silence, and of chance, on new held-out questions."""
    teacher = Teacher(model_folder)
    model: Any = Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained(str(model_folder))
    model.eval()
    with tempfile.TemporaryDirectory() as folder:
        lessons = heldout_lessons(teacher, Path(folder), seed=seed, num_questions=num_questions)
    completions = greedy_completions(model, teacher, lessons)
    muted = greedy_completions(model, teacher, lessons, muted=True)
    return {
        "exam_seed": seed,
        "num_questions": len(lessons),
        "accuracy": _accuracy(lessons, completions),
        "accuracy_muted": _accuracy(lessons, muted),
        "accuracy_chance": _mean([1 / len(x.question.choices) for x in lessons]),
        "accuracy_by_family": _by_family(lessons, completions),
        "mean_completion_tokens": _mean(
            [len(teacher.processor.tokenizer(text)["input_ids"]) for text in completions]
        ),
    }


def heldout_lessons(
    teacher: Teacher, folder: Path, *, seed: int, num_questions: int
) -> list[Lesson]:
    """Questions of a freshly built world, read back from its files and its WAVs of mixed rates."""
    world = build_world(folder, seed=seed, num_train=0, num_heldout=num_questions, num_benchmark=0)
    lessons = []
    heard: dict[str, tuple[int, torch.Tensor]] = {}
    for line in world.heldout.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        path = row["audio_path"]
        if path not in heard:
            waveform = decode((folder / path).read_bytes(), path).waveform
            heard[path] = (len(waveform), teacher.mel(waveform))
        question = Question(
            id=row["id"],
            audio=path,
            text=row["question"],
            choices=tuple(row["choices"]),
            answer=row["answer"],
        )
        lessons.append(teacher.lesson(question, heard[path]))
    return lessons


@torch.inference_mode()
def greedy_completions(
    model: Any, teacher: Teacher, lessons: list[Lesson], *, muted: bool = False
) -> list[str]:
    """Greedy completions in the lessons' order, special tokens removed."""
    completions: list[str] = []
    for start in range(0, len(lessons), _BATCH_SIZE):
        batch = prompt_batch(lessons[start : start + _BATCH_SIZE], muted=muted)
        ids_BT = model.generate(**batch, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        new_BT = ids_BT[:, batch["input_ids"].shape[1] :]
        completions += teacher.processor.tokenizer.batch_decode(new_BT, skip_special_tokens=True)
    return completions


def is_right(question: Question, completion: str) -> bool:
    """Whether the text after the thinking is the answer, word for word."""
    opened, closed, answer = completion.partition("</think>")
    return bool(closed) and opened.startswith("<think>") and answer.strip() == question.answer


def _accuracy(lessons: list[Lesson], completions: list[str]) -> float:
    return _mean([is_right(x.question, text) for x, text in zip(lessons, completions, strict=True)])


def _by_family(lessons: list[Lesson], completions: list[str]) -> dict[str, float]:
    groups: dict[str, list[bool]] = defaultdict(list)
    for lesson, text in zip(lessons, completions, strict=True):
        # Ids of the world end with the family: tiny-heldout-0-00012-1-count-of.
        family = lesson.question.id.split("-", maxsplit=5)[5]
        groups[family].append(is_right(lesson.question, text))
    return {family: _mean(right) for family, right in sorted(groups.items())}


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4)
