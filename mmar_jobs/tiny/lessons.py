"""Turn clips and questions of the synthetic world into batches for the tiny model.

Not here: the training loop (warmstart.py) and the trainer of the main job (qlora/), which packs and
shares nothing with this but the prompt.
"""

# Shapes: B rows, T tokens, M mel bins (128), F mel frames (100 a second).

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Qwen3OmniMoeProcessor

from mmar_jobs.audio import num_audio_tokens
from mmar_jobs.prompt import render
from mmar_jobs.records import Question

PROMPT_VERSION: Final = "baseline"
END_OF_TURN: Final = "<|im_end|>\n"
IGNORED: Final = -100


@dataclass(frozen=True, slots=True)
class Lesson:
    """One encoded question; `completion_ids` is empty where there is nothing to learn from."""

    question: Question
    mel_MF: torch.Tensor
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...] = ()


class Teacher:
    """Encodes questions with the processor of one model folder."""

    def __init__(self, model_folder: Path) -> None:
        self.processor: Any = Qwen3OmniMoeProcessor.from_pretrained(str(model_folder))
        self._audio_pad = self.processor.audio_token

    def mel(self, waveform: NDArray[np.float32]) -> torch.Tensor:
        """Log-mel features [M, F] of a 16 kHz waveform, float16."""
        features = self.processor.feature_extractor(
            waveform, sampling_rate=16_000, padding=True, truncation=False, return_tensors="pt"
        )
        mel_MF: torch.Tensor = features["input_features"][0].half()
        return mel_MF

    def lesson(
        self, question: Question, waveform_mel: tuple[int, torch.Tensor], trace: str = ""
    ) -> Lesson:
        """Encode one question about a clip given as (number of 16 kHz samples, mel features)."""
        num_samples, mel_MF = waveform_mel
        text = self.processor.apply_chat_template(
            render(question, PROMPT_VERSION).messages(), add_generation_prompt=True, tokenize=False
        )
        text = text.replace(self._audio_pad, self._audio_pad * num_audio_tokens(num_samples))
        completion = trace and trace + END_OF_TURN
        return Lesson(question, mel_MF, self._encode(text), self._encode(completion))

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.processor.tokenizer(text)["input_ids"]) if text else ()


def training_batch(lessons: Sequence[Lesson]) -> dict[str, torch.Tensor]:
    """Right-padded input_ids_BT, attention_mask_BT, labels_BT and audio of taught lessons."""
    rows = [[*lesson.prompt_ids, *lesson.completion_ids] for lesson in lessons]
    labels = [[*([IGNORED] * len(lesson.prompt_ids)), *lesson.completion_ids] for lesson in lessons]
    return {
        "input_ids": _padded(rows, fill=0),
        "attention_mask": _padded([[1] * len(row) for row in rows], fill=0),
        "labels": _padded(labels, fill=IGNORED),
        **_audio(lesson.mel_MF for lesson in lessons),
    }


def prompt_batch(lessons: Sequence[Lesson], *, muted: bool = False) -> dict[str, torch.Tensor]:
    """Left-padded prompts for generate; `muted` puts features of silence in the clips' place."""
    longest = max(len(lesson.prompt_ids) for lesson in lessons)
    gaps = [longest - len(lesson.prompt_ids) for lesson in lessons]
    rows = [[0] * gap + list(lesson.prompt_ids) for gap, lesson in zip(gaps, lessons, strict=True)]
    masks = [
        [0] * gap + [1] * len(lesson.prompt_ids) for gap, lesson in zip(gaps, lessons, strict=True)
    ]
    mels = (
        torch.full_like(lesson.mel_MF, SILENT_MEL) if muted else lesson.mel_MF for lesson in lessons
    )
    return {
        "input_ids": torch.tensor(rows),
        "attention_mask": torch.tensor(masks),
        **_audio(mels),
    }


# log10(1e-10) through Whisper's (x + 4) / 4: every bin of a clip of zeros.
SILENT_MEL: Final = -1.5


def _padded(rows: list[list[int]], *, fill: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *([fill] * (longest - len(row)))] for row in rows])


def _audio(mels: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    mel_list = list(mels)
    longest = max(mel.shape[1] for mel in mel_list)
    features_BMF = torch.zeros(len(mel_list), mel_list[0].shape[0], longest)
    mask_BF = torch.zeros(len(mel_list), longest, dtype=torch.long)
    for row, mel in enumerate(mel_list):
        features_BMF[row, :, : mel.shape[1]] = mel
        mask_BF[row, : mel.shape[1]] = 1
    return {"input_features": features_BMF, "feature_attention_mask": mask_BF}
