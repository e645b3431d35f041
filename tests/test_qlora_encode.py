"""Encoding a completion, and each gate against the fault that it is there for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmar_jobs.audio import Clip, num_audio_tokens
from mmar_jobs.encode import EncodedPrompt, encode_prompt, load_processor
from mmar_jobs.errors import GateError
from mmar_jobs.grade import has_control_token
from mmar_jobs.prompt import render
from mmar_jobs.qlora import gates
from mmar_jobs.qlora.audio_embeds import (
    AudioEmbeds,
    MelFeatures,
    embed_clips,
    embed_window,
    write_embeds,
)
from mmar_jobs.qlora.encode import (
    TURN_CLOSE,
    TURN_OPEN,
    check_row,
    encode_example,
    token_ids,
)
from mmar_jobs.qlora.gates import TokenIds
from mmar_jobs.qlora.packing import TrainRow, pack_row
from mmar_jobs.qlora.step import row_embeds
from mmar_jobs.records import Question
from tests import qlora_cases as cases

COMPLETION = "<think>\nOne high tone.\n</think>\n\nyes"
TOKENS = TokenIds(think_open=1, think_close=2, turn_open=3, turn_close=4, audio=5)
QUESTION = Question(id="q7", audio="q7.wav", text="Is there a tone?", choices=("yes", "no"))


@pytest.fixture(scope="module")
def processor() -> Any:
    """The tiny model's own processor."""
    return load_processor(cases.base_folder())


def make_clip(duration_s: float, *, seed: int = 0) -> Clip:
    """Noise of a given length, mono at 16 kHz."""
    waveform = np.random.default_rng(seed).normal(0, 0.1, round(duration_s * 16_000))
    return Clip(waveform.astype(np.float32), duration_s, 16_000, 1)


def prompt_of(processor: Any, clip: Clip) -> EncodedPrompt:
    """The question's prompt with a clip."""
    return encode_prompt(processor, render(QUESTION, "v7"), clip, question_id="q7")


def encode(processor: Any, completion: str, duration_s: float = 2.0) -> TrainRow:
    """The question, answered by `completion`."""
    return encode_example(
        processor,
        prompt_of(processor, make_clip(duration_s)),
        completion,
        question_id="q7",
        audio_sha256="clip",
        weight=1.0,
    )


@pytest.mark.parametrize("duration_s", [0.2, 1.0, 2.5])
def test_labels_are_the_completion_verbatim(processor: Any, duration_s: float) -> None:
    """Labels decode to the completion and the end of the turn; the prompt has all audio."""
    row = encode(processor, COMPLETION, duration_s)
    labels = row.input_ids_S[row.num_prompt_tokens :]
    assert processor.tokenizer.decode(labels) == COMPLETION + "<|im_end|>\n"
    audio = token_ids(processor).audio
    expected = num_audio_tokens(round(duration_s * 16_000))
    assert expected == int((row.input_ids_S == audio).sum())


@pytest.mark.parametrize(
    ("completion", "message"),
    [
        ("yes", "0 </think> tokens"),
        ("no opening</think>\n\nyes", "0 <think> tokens before"),
        ("<think>a</think>b</think>yes", "2 </think> tokens"),
        ("<think><think>a</think>yes", "2 <think> tokens before"),
        ("<think>a</think>yes<think>", "1 <think> tokens before"),
        ("", "no token has a label"),
        ("<think>a</think>yes<|im_end|>\nmore", "must end with one"),
        ("<think>a</think>yes<|im_start|>user", "start-of-turn token"),
        ("<think><|audio_pad|></think>yes", "audio token"),
    ],
)
def test_faulty_completions_are_stopped(processor: Any, completion: str, message: str) -> None:
    """Each is a GateError that names the question."""
    with pytest.raises(GateError, match=f"question q7: .*{message}"):
        encode(processor, completion)


def test_prompt_tokens_in_the_labels_are_stopped(processor: Any) -> None:
    """Labels that start inside the prompt, or after the completion's start, are stopped."""
    prompt = prompt_of(processor, make_clip(1.0))
    row = encode(processor, COMPLETION, 1.0)
    tokens = token_ids(processor)
    check_row(row, prompt, tokens)
    early = replace(row, num_prompt_tokens=row.num_prompt_tokens - 3)
    with pytest.raises(GateError, match="q7: 3 prompt tokens are in the labels"):
        check_row(early, prompt, tokens)
    late = replace(row, num_prompt_tokens=row.num_prompt_tokens + 2)
    with pytest.raises(GateError, match="would not be trained"):
        check_row(late, prompt, tokens)


def test_truncated_audio_is_stopped(processor: Any) -> None:
    """Four audio tokens for a clip that gives 130 are stopped."""
    prompt = prompt_of(processor, make_clip(1.0))
    row = encode(processor, COMPLETION, 1.0)
    deaf = replace(prompt, features_MF=torch.zeros(128, 1000))
    with pytest.raises(GateError, match=r"hear 13 audio tokens .* clip of 10\.00 s gives 130"):
        check_row(row, deaf, token_ids(processor))


def test_opening_tag_may_end_the_prompt() -> None:
    """Templates that end the prompt with <think> leave only the closing tag to the completion."""
    gates.check_think_tags([3, 9, 1, 8], [7, 2, 7], TOKENS, question_id="q")
    with pytest.raises(GateError, match="2 <think>"):
        gates.check_think_tags([3, 9, 1, 8], [1, 7, 2, 7], TOKENS, question_id="q")


def test_opening_tag_in_an_earlier_turn_does_not_count() -> None:
    """A <think> in the system text is not the opening tag of this completion."""
    gates.check_think_tags([3, 1, 9, 3, 8], [1, 7, 2], TOKENS, question_id="q")
    with pytest.raises(GateError, match="0 <think>"):
        gates.check_think_tags([3, 1, 9, 3, 8], [7, 2], TOKENS, question_id="q")


def test_embeddings_equal_the_full_models(processor: Any) -> None:
    """Cached embeddings give the logits of the full forward with the sound."""
    lora = cases.adapted()
    prompt = prompt_of(processor, make_clip(1.7))
    row = encode(processor, COMPLETION, 1.7)
    clip = MelFeatures("clip", prompt.features_MF)
    audio = embed_window(lora.model, [clip], [prompt.num_audio_tokens])
    mask = torch.ones(1, prompt.features_MF.shape[1], dtype=torch.int64)
    with torch.no_grad():
        expected = lora.model(
            input_ids=row.input_ids_S[None],
            input_features=prompt.features_MF[None],
            feature_attention_mask=mask,
            attention_mask=torch.ones_like(row.input_ids_S[None]),
            use_cache=False,
        ).logits[0]
        assert (cases.separate_logits(lora.model, row, audio) - expected).abs().max() <= 1e-5
        embeds = row_embeds(lora, [row], pack_row([row], [0]), audio)
    assert embeds.shape == (1, row.num_tokens, cases.HIDDEN)


def test_clips_of_a_batch_do_not_change_each_other(processor: Any) -> None:
    """Embedded together or alone, each clip has the same embeddings."""
    model = cases.thinker()
    prompts = [prompt_of(processor, make_clip(s, seed=round(s * 10))) for s in (0.5, 2.0, 1.3)]
    clips = [MelFeatures(str(i), prompt.features_MF) for i, prompt in enumerate(prompts)]
    counts = [prompt.num_audio_tokens for prompt in prompts]
    together = embed_clips(model, clips, counts)
    for clip, count, embeds in zip(clips, counts, together, strict=True):
        (alone,) = embed_clips(model, [clip], [count])
        assert alone.shape == (count, cases.HIDDEN)
        assert (alone - embeds).abs().max() <= 1e-5


def test_a_window_on_a_cpu_embeds_each_clip_as_if_alone(processor: Any, tmp_path: Path) -> None:
    """What a file gives back has, bit for bit, the embeddings of each clip alone, in any order."""
    model = cases.thinker()
    prompts = [prompt_of(processor, make_clip(s, seed=round(s * 10))) for s in (2.0, 0.5, 1.3)]
    clips = [MelFeatures(str(i), prompt.features_MF) for i, prompt in enumerate(prompts)]
    counts = [prompt.num_audio_tokens for prompt in prompts]
    write_embeds(embed_window(model, clips, counts), tmp_path / "a")
    write_embeds(embed_window(model, clips[::-1], counts[::-1]), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    audio = AudioEmbeds()
    audio.open(tmp_path / "a")
    assert sorted(audio) == ["0", "1", "2"]
    for clip, count in zip(clips, counts, strict=True):
        (alone,) = embed_clips(model, [clip], [count])
        assert torch.equal(alone, audio[clip.audio_sha256])


def test_a_file_of_no_embeddings_is_refused(tmp_path: Path) -> None:
    """A file that is none is named."""
    (tmp_path / "a").write_bytes(b"no embeddings")
    with pytest.raises(ValueError, match="no safetensors file"):
        AudioEmbeds().open(tmp_path / "a")


def test_wrong_number_of_embeddings_is_stopped(processor: Any) -> None:
    """A tower that makes another number of embeddings than the prompt has tokens is a GateError."""
    prompt = prompt_of(processor, make_clip(1.0))
    with pytest.raises(GateError, match="13 embeddings for 130 audio tokens"):
        embed_clips(cases.thinker(), [MelFeatures("clip", prompt.features_MF)], [130])


def test_filter_knows_every_token_that_the_gates_refuse(processor: Any) -> None:
    """What stops training by name, filter finds in a text; the tags of the thinking it lets by."""
    refused = {TURN_OPEN, TURN_CLOSE, *processor.tokenizer.all_special_tokens}
    assert processor.audio_token in refused
    assert all(has_control_token(f"I hear {name} there") for name in refused)
    assert not has_control_token("<think>5 <| 3, a|b, <b>|</think>Yes")
