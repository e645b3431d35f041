"""The tiny model's folder has the real model's form."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import Qwen3OmniMoeProcessor, Qwen3OmniMoeThinkerForConditionalGeneration

from mmar_jobs.audio import num_audio_tokens
from mmar_jobs.prompt import SYSTEM_BY_VERSION
from mmar_jobs.tiny.lessons import PROMPT_VERSION
from mmar_jobs.tiny.model import SPECIAL_TOKENS, save_random_model
from mmar_jobs.tiny.questions import TEMPLATES
from mmar_jobs.weights import original_layout_state, save_original_layout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny model."""
    path = tmp_path_factory.mktemp("model")
    save_random_model(path, seed=3)
    return path


def _load(folder: Path) -> torch.nn.Module:
    model, info = Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained(
        str(folder), output_loading_info=True
    )
    assert not any(info.values()), info
    return model.eval()


def test_the_class_loads_every_weight(folder: Path) -> None:
    """No key is missing, unexpected or mismatched; the file has the original's names."""
    _load(folder)
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert all(name.startswith("thinker.") for name in names)
    for matrix in ("gate_proj", "up_proj", "down_proj"):
        assert f"thinker.model.layers.1.mlp.experts.7.{matrix}.weight" in names
    config = json.loads((folder / "config.json").read_text())
    assert ["Qwen3OmniMoeForConditionalGeneration"] == config["architectures"]
    assert config["enable_audio_output"] is False


def test_saving_and_loading_keeps_the_logits(folder: Path, tmp_path: Path) -> None:
    """What save_original_layout writes is the same model, complete with its other files."""
    model = _load(folder)
    save_original_layout(model, folder, tmp_path / "copy")
    ids_BT = torch.arange(40).reshape(2, 20)
    with torch.inference_mode():
        expected_BTV = model(input_ids=ids_BT).logits
        actual_BTV = _load(tmp_path / "copy")(input_ids=ids_BT).logits
    assert torch.equal(expected_BTV, actual_BTV)
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "copy").iterdir())
    state = original_layout_state(model)
    assert all(tensor.is_contiguous() for tensor in state.values())
    saved = load_file(folder / "model.safetensors")
    assert saved.keys() == state.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in state.items())


def test_one_seed_gives_one_model(folder: Path, tmp_path: Path) -> None:
    """The same seed gives the same bytes in every file and leaves torch's own seed alone."""
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    save_random_model(tmp_path, seed=3)
    assert torch.equal(expected, torch.rand(1))
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_the_processor_hears_thirteen_tokens_a_second(folder: Path) -> None:
    """The real processor class renders audio into as many tokens as the clip is long."""
    processor = Qwen3OmniMoeProcessor.from_pretrained(str(folder))
    messages = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "How?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert (
        "<|im_start|>user\n<|audio_start|><|audio_pad|><|audio_end|>How?<|im_end|>\n"
        "<|im_start|>assistant\n"
    ) == text
    for num_samples in (16_000, 47_113):
        batch = processor(
            text=[text], audio=[np.zeros(num_samples, np.float32)], return_tensors="pt"
        )
        pad_id = processor.tokenizer.convert_tokens_to_ids("<|audio_pad|>")
        assert num_audio_tokens(num_samples) == int((batch["input_ids"] == pad_id).sum())


def test_a_past_turn_loses_its_thinking(folder: Path) -> None:
    """The template drops the thinking of past turns, which is why training appends completions."""
    processor = Qwen3OmniMoeProcessor.from_pretrained(str(folder))
    messages = [
        {"role": "system", "content": "S"},
        {"role": "assistant", "content": [{"type": "text", "text": "<think>why</think>\n\ntwo"}]},
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=False, tokenize=False)
    assert "<|im_start|>system\nS<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n" == text


def test_config_and_tokenizer_agree_on_ids(folder: Path) -> None:
    """Every id in the config is the tokenizer's, every special token is one token."""
    config = json.loads((folder / "config.json").read_text())
    tokenizer = Qwen3OmniMoeProcessor.from_pretrained(str(folder)).tokenizer
    thinker = config["thinker_config"]
    pairs = {
        "<|audio_pad|>": thinker["audio_token_id"],
        "<|audio_start|>": thinker["audio_start_token_id"],
        "<|image_pad|>": thinker["image_token_id"],
        "<|video_pad|>": thinker["video_token_id"],
        "<|vision_start|>": thinker["vision_start_token_id"],
        "<|im_start|>": config["im_start_token_id"],
        "<|im_end|>": config["im_end_token_id"],
        "user": thinker["user_token_id"],
        "assistant": config["assistant_token_id"],
    }
    assert list(pairs.values()) == tokenizer.convert_tokens_to_ids(list(pairs))
    assert all(len(tokenizer(token)["input_ids"]) == 1 for token in SPECIAL_TOKENS)
    assert thinker["text_config"]["vocab_size"] >= len(tokenizer)


def test_thinking_tags_survive_decoding(folder: Path) -> None:
    """skip_special_tokens removes the end of the turn and keeps the tags that parsing needs."""
    tokenizer = Qwen3OmniMoeProcessor.from_pretrained(str(folder)).tokenizer
    ids = tokenizer("<think>low tone.</think>\n\ntwo<|im_end|>")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>low tone.</think>\n\ntwo"


def test_words_of_the_world_are_single_tokens(folder: Path) -> None:
    """Its questions and its own prompt need hardly more tokens than they have words."""
    tokenizer = Qwen3OmniMoeProcessor.from_pretrained(str(folder)).tokenizer
    for text in (SYSTEM_BY_VERSION[PROMPT_VERSION], *(template.text for template in TEMPLATES)):
        assert len(tokenizer(text)["input_ids"]) <= 1.35 * len(text.split()) + 2, text
