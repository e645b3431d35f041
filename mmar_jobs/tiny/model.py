"""Make a folder of the real Qwen3-Omni class, cut down to 0.8 M parameters, randomly initialised.

Not here: training it (warmstart.py). The folder has the original file layout of
Qwen3-Omni-30B-A3B-Thinking: what loads this loads the real one, in transformers and in vLLM.
"""

import json
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Regex as TokenizerRegex
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    Qwen2Tokenizer,
    Qwen3OmniMoeConfig,
    Qwen3OmniMoeThinkerForConditionalGeneration,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from mmar_jobs.tiny.questions import corpus
from mmar_jobs.tiny.template import CHAT_TEMPLATE
from mmar_jobs.tiny.words import INSTRUCTIONS
from mmar_jobs.weights import save_original_layout

# Order and spelling of Qwen3-Omni's own added tokens; the audio pad really comes last there.
SPECIAL_TOKENS: Final = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>"),
    *("<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<tool_call>"),
    *("</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>"),
    *("</think>", "<|audio_start|>", "<|audio_end|>", "<tts_pad>", "<tts_text_bos>"),
    *("<tts_text_eod>", "<tts_text_bos_single>", "<|audio_pad|>"),
)
# Plain added tokens: skip_special_tokens must not remove them from a completion.
_NOT_SPECIAL: Final = frozenset(token for token in SPECIAL_TOKENS if not token.startswith("<|"))
_MAX_BPE_VOCABULARY: Final = 1000
_ROLES: Final = ("system", "user", "assistant")


def save_random_model(folder: Path, *, seed: int) -> None:
    """Write a complete model folder with random weights (the class's own initialisation).

    Config and tokenizer do not depend on the seed. The global torch seed is left as it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(str(folder))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    _write_json(folder / "config.json", _config(tokenizer))
    _write_json(folder / "generation_config.json", _generation_config(tokenizer))
    _write_json(folder / "preprocessor_config.json", _PREPROCESSOR)
    _write_json(folder / "video_preprocessor_config.json", _VIDEO_PREPROCESSOR)
    config = Qwen3OmniMoeConfig.from_pretrained(str(folder))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        thinker: Any = Qwen3OmniMoeThinkerForConditionalGeneration
        model = thinker(config.thinker_config)
    save_original_layout(model, folder, folder)


def _tokenizer() -> Any:
    """Byte-level BPE with Qwen's pre-tokenizer; every word of the synthetic world is one token."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(TokenizerRegex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_MAX_BPE_VOCABULARY,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator([*INSTRUCTIONS, *_ROLES, *corpus()], trainer)
    trained = json.loads(bpe.to_str())["model"]
    return _with_special_tokens(trained["vocab"], [tuple(pair) for pair in trained["merges"]])


def _with_special_tokens(vocabulary: dict[str, int], merges: Any) -> Any:
    vocabulary = dict(vocabulary)
    for token in SPECIAL_TOKENS:
        vocabulary[token] = len(vocabulary)
    tokenizer: Any = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        eos_token="<|im_end|>",  # noqa: S106 - a token of text
        pad_token="<|endoftext|>",  # noqa: S106 - the same
        extra_special_tokens={
            "audio_bos_token": "<|audio_start|>",
            "audio_eos_token": "<|audio_end|>",
            "audio_token": "<|audio_pad|>",
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_bos_token": "<|vision_start|>",
            "vision_eos_token": "<|vision_end|>",
        },
        model_max_length=32768,
    )
    tokenizer.add_tokens([t for t in SPECIAL_TOKENS if t not in _NOT_SPECIAL], special_tokens=True)
    tokenizer.add_tokens(sorted(_NOT_SPECIAL, key=SPECIAL_TOKENS.index))
    return tokenizer


def _config(tokenizer: Any) -> dict[str, Any]:
    ids = dict(zip(SPECIAL_TOKENS, tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS), strict=True))
    role_ids = dict(zip(_ROLES, tokenizer.convert_tokens_to_ids(_ROLES), strict=True))
    return {
        "architectures": ["Qwen3OmniMoeForConditionalGeneration"],
        "model_type": "qwen3_omni_moe",
        "dtype": "float32",
        "enable_audio_output": False,
        "im_start_token_id": ids["<|im_start|>"],
        "im_end_token_id": ids["<|im_end|>"],
        "system_token_id": role_ids["system"],
        "user_token_id": role_ids["user"],
        "assistant_token_id": role_ids["assistant"],
        "tts_pad_token_id": ids["<tts_pad>"],
        "tts_bos_token_id": ids["<tts_text_bos>"],
        "tts_eos_token_id": ids["<tts_text_eod>"],
        "thinker_config": {
            "model_type": "qwen3_omni_moe_thinker",
            "dtype": "float32",
            "audio_token_id": ids["<|audio_pad|>"],
            "audio_start_token_id": ids["<|audio_start|>"],
            "audio_end_token_id": ids["<|audio_end|>"],
            "image_token_id": ids["<|image_pad|>"],
            "video_token_id": ids["<|video_pad|>"],
            "vision_start_token_id": ids["<|vision_start|>"],
            "vision_end_token_id": ids["<|vision_end|>"],
            "user_token_id": role_ids["user"],
            "position_id_per_seconds": 13,
            "initializer_range": 0.02,
            "audio_config": _AUDIO,
            "vision_config": _VISION,
            "text_config": {**_TEXT, "vocab_size": _padded(len(tokenizer))},
        },
    }


def _padded(size: int) -> int:
    # A multiple of 64 as in the real model, so that tensor-parallel servers can split it.
    return -(-size // 64) * 64


def _generation_config(tokenizer: Any) -> dict[str, Any]:
    end, pad = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    return {
        "do_sample": True,
        "temperature": 0.9,
        "top_p": 0.95,
        "eos_token_id": [end, pad],
        "pad_token_id": pad,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


_AUDIO: Final[dict[str, Any]] = {
    "model_type": "qwen3_omni_moe_audio_encoder",
    "num_mel_bins": 128,
    "d_model": 64,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "downsample_hidden_size": 16,
    "output_dim": 128,
    "max_source_positions": 1500,
    "n_window": 50,
    "n_window_infer": 800,
    "conv_chunksize": 500,
    "activation_function": "gelu",
}
# The smallest tower that the class accepts; the project never feeds it. vLLM builds it all the
# same, from fields that the original states and transformers does not know.
_VISION: Final[dict[str, Any]] = {
    "model_type": "qwen3_omni_moe_vision_encoder",
    "image_size": 64,
    "apply_vit_abs_pos_embed": True,
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 1,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 128,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [],
}
_TEXT: Final[dict[str, Any]] = {
    "model_type": "qwen3_omni_moe_text",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 128,
    "moe_intermediate_size": 64,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "norm_topk_prob": True,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000,
    "rope_scaling": {
        "rope_type": "default",
        "type": "default",
        "interleaved": True,
        "mrope_interleaved": True,
        "mrope_section": [6, 5, 5],
    },
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "attention_bias": False,
    "use_cache": True,
}
_PREPROCESSOR: Final[dict[str, Any]] = {
    "processor_class": "Qwen3OmniMoeProcessor",
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 128,
    "sampling_rate": 16000,
    "hop_length": 160,
    "n_fft": 400,
    "chunk_length": 30,
    "n_samples": 480000,
    "nb_max_frames": 3000,
    "dither": 0.0,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": True,
    "image_processor_type": "Qwen2VLImageProcessor",
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
_VIDEO_PREPROCESSOR: Final[dict[str, Any]] = {
    "processor_class": "Qwen3OmniMoeProcessor",
    "video_processor_type": "Qwen2VLVideoProcessor",
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
