"""A prompt and its clip as the model's inputs: the one encoder of generate, train, evaluate, infer.

Not here: the prompt's text (prompt.py), completions and labels (qlora/encode.py), embeddings.

Legend: S prompt tokens, M mel bins, F mel frames.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3OmniMoeProcessor

from mmar_jobs.audio import SAMPLE_RATE_HZ, Clip, check_audio_tokens
from mmar_jobs.chat import render_prompt
from mmar_jobs.errors import DataError, GateError
from mmar_jobs.prompt import Prompt


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """One prompt ready for the model: `input_ids_S` int64, `features_MF` float32 log-mel."""

    input_ids_S: Tensor
    features_MF: Tensor
    num_audio_tokens: int


def load_processor(folder: Path) -> Any:
    """The model's own processor; a DataError when `folder` holds none."""
    try:
        return Qwen3OmniMoeProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{folder} holds no Qwen3-Omni processor: {reason}") from error


def encode_prompt(processor: Any, prompt: Prompt, clip: Clip, *, question_id: str) -> EncodedPrompt:
    """Render the chat template up to the assistant's turn and encode text and sound.

    Clips are encoded one by one: in a padded batch the last mel frame of the shorter clips would
    differ, and an answer would depend on its neighbours. Raises GateError unless the model hears
    every second of the clip.
    """
    text = render_prompt(processor, prompt)
    inputs = processor(
        text=text, audio=[clip.waveform], sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt"
    )
    input_ids_S = inputs["input_ids"][0]
    audio_id = processor.tokenizer.convert_tokens_to_ids(processor.audio_token)
    num_audio_tokens = int((input_ids_S == audio_id).sum())
    check_audio_tokens(num_audio_tokens, duration_s=clip.duration_s, question_id=question_id)
    num_frames = int(inputs["feature_attention_mask"].sum())
    features_MF = inputs["input_features"][0][:, :num_frames]
    if not torch.isfinite(features_MF).all():
        raise GateError(f"question {question_id}: its mel features are not finite numbers")
    return EncodedPrompt(input_ids_S, features_MF, num_audio_tokens)
