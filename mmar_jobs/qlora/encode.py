"""Encoding: a prompt with its clip, then a completion behind it, into what the trainer reads.

Not here: the prompt's text (prompt.py), decoding of clips (audio.py). The chat template renders the
prompt only: it would drop the thinking of a completion, which is therefore appended verbatim.

Legend: S tokens, M mel bins, F mel frames.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmar_jobs.errors import DataError
from mmar_jobs.prompt import THINK_CLOSE, THINK_OPEN
from mmar_jobs.qlora import gates
from mmar_jobs.qlora.audio_embeds import MelFeatures, waveform_sha256
from mmar_jobs.qlora.gates import TokenIds
from mmar_jobs.qlora.packing import TrainRow

SAMPLE_RATE_HZ: Final = 16_000
TURN_OPEN: Final = "<|im_start|>"
TURN_CLOSE: Final = "<|im_end|>"


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A rendered prompt's tokens and its clip's mel features; shared by all examples of a question."""

    question_id: str
    input_ids_S: Tensor
    num_audio_tokens: int
    mel: MelFeatures


def token_ids(processor: Any) -> TokenIds:  # noqa: ANN401 - transformers is untyped
    """Look up the tokens that the gates need; a tokenizer without one of them is a DataError."""
    tokenizer = processor.tokenizer
    names = (THINK_OPEN, THINK_CLOSE, TURN_OPEN, TURN_CLOSE, processor.audio_token)
    ids = [tokenizer.convert_tokens_to_ids(name) for name in names]
    for name, token in zip(names, ids, strict=True):
        if token is None or token == tokenizer.unk_token_id:
            raise DataError(f"the model's tokenizer has no token {name}: give a Qwen3-Omni model folder")
    return TokenIds(*ids)


def encode_prompt(
    processor: Any,  # noqa: ANN401 - transformers is untyped
    messages: Sequence[Mapping[str, Any]],
    *,
    waveform: NDArray[np.float32],
    question_id: str,
    expected_audio_tokens: int,
) -> EncodedPrompt:
    """Render and tokenise a prompt with its whole clip (mono, 16 kHz).

    `expected_audio_tokens` is what the clip's length gives (audio.num_audio_tokens); another number in
    the prompt is a GateError.
    """
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(
        text=text, audio=[waveform], sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt"
    )
    input_ids_S = inputs["input_ids"][0]
    audio_token = processor.tokenizer.convert_tokens_to_ids(processor.audio_token)
    num_audio_tokens = int((input_ids_S == audio_token).sum())
    gates.check_audio_tokens(num_audio_tokens, expected_audio_tokens, question_id=question_id)
    features_MF = inputs["input_features"][0][:, inputs["feature_attention_mask"][0].bool()]
    mel = MelFeatures(waveform_sha256(waveform), features_MF)
    return EncodedPrompt(question_id, input_ids_S, num_audio_tokens, mel)


def encode_example(
    processor: Any,  # noqa: ANN401 - transformers is untyped
    prompt: EncodedPrompt,
    completion: str,
    *,
    weight: float,
) -> TrainRow:
    """Append the completion verbatim and the end of the turn; raises GateError when a gate fails."""
    ids = processor.tokenizer(completion + TURN_CLOSE + "\n", add_special_tokens=False)["input_ids"]
    row = TrainRow(
        question_id=prompt.question_id,
        input_ids_S=torch.cat((prompt.input_ids_S, torch.tensor(ids, dtype=torch.int64))),
        num_prompt_tokens=prompt.input_ids_S.numel(),
        weight=weight,
        audio_sha256=prompt.mel.audio_sha256,
    )
    if not completion.strip():
        gates.check_has_labels(0, question_id=prompt.question_id)
    check_row(row, prompt, token_ids(processor))
    return row


def check_row(row: TrainRow, prompt: EncodedPrompt, tokens: TokenIds) -> None:
    """Run every gate over one encoded example; raises GateError naming the question."""
    prompt_ids = prompt.input_ids_S.tolist()
    unlabelled_ids = row.input_ids_S[: row.num_prompt_tokens].tolist()
    label_ids = row.input_ids_S[row.num_prompt_tokens :].tolist()
    question_id = row.question_id
    num_audio_tokens = unlabelled_ids.count(tokens.audio)
    gates.check_has_labels(len(label_ids), question_id=question_id)
    gates.check_labels_are_completion(prompt_ids, unlabelled_ids, question_id=question_id)
    gates.check_audio_tokens(num_audio_tokens, prompt.num_audio_tokens, question_id=question_id)
    gates.check_no_prompt_markers(label_ids, tokens, question_id=question_id)
    gates.check_think_tags(prompt_ids, label_ids, tokens, question_id=question_id)
    gates.check_turn_closed(label_ids, tokens, question_id=question_id)
