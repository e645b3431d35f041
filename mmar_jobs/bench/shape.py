"""Models for speed runs: the real class at a given shape, random weights made on the device.

Not here: towers (a speed run feeds random audio embeddings), LoRA, any file.
"""

import dataclasses
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import Qwen3OmniMoeThinkerConfig, Qwen3OmniMoeThinkerForConditionalGeneration

from mmar_jobs.planning.shape import REFERENCE
from mmar_jobs.qlora.foreign import Thinker
from mmar_jobs.qlora.load import place_nf4
from mmar_jobs.qlora.memory import ModelShape, Quantization
from mmar_jobs.qlora.nf4 import Nf4Weight

SHAPES: Final = {
    "30b": ModelShape(**REFERENCE.model_dump()),
    # The embedded model's (tiny/model.py), for a run of seconds on a CPU.
    "tiny": ModelShape(
        num_layers=2,
        hidden=128,
        num_experts=8,
        experts_per_token=2,
        expert_width=64,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        vocabulary=1024,
    ),
}
_STD: Final = 0.02
# The smallest towers that the class accepts; they are taken off again.
_AUDIO: Final = {
    "num_mel_bins": 16,
    "d_model": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 1,
    "encoder_ffn_dim": 16,
    "downsample_hidden_size": 4,
}
_VISION: Final = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 1,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [],
}


def with_layers(shape: ModelShape, num_layers: int | None) -> ModelShape:
    """The shape cut to `num_layers`, or as it is."""
    return dataclasses.replace(shape, num_layers=num_layers) if num_layers else shape


def build_thinker(
    shape: ModelShape,
    quantization: Quantization,
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
) -> Thinker:
    """A frozen thinker without towers, weights drawn on the device from `seed`.

    With "nf4", experts and attention projections are random NF4 codes: a bf16 expert never exists.
    """
    with torch.device("meta"):
        foreign: Any = Qwen3OmniMoeThinkerForConditionalGeneration
        model = foreign(_config(shape))
    del model.visual, model.audio_tower
    text = model.model
    text.rotary_emb = type(text.rotary_emb)(text.config).to(device)
    generator = torch.Generator(device=device).manual_seed(seed)

    def random_nf4(like: Tensor) -> Nf4Weight:
        shape = tuple(like.shape)
        return Nf4Weight.random(shape, device=device, generator=generator, dtype=dtype)

    if quantization == "nf4":
        place_nf4(model, random_nf4)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            drawn = _draw(parameter, generator, dtype=dtype)
            setattr(module, name, nn.Parameter(drawn, requires_grad=False))
    thinker: Thinker = model.eval()
    return thinker


def _config(shape: ModelShape) -> Any:
    half = shape.head_dim // 2
    side = half * 5 // 16  # the real 24, 20, 20 of 64, in proportion
    text = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.expert_width,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "moe_intermediate_size": shape.expert_width,
        "num_experts": shape.num_experts,
        "num_experts_per_tok": shape.experts_per_token,
        "max_position_embeddings": 65_536,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1_000_000,
            "mrope_section": [half - 2 * side, side, side],
        },
    }
    config: Any = Qwen3OmniMoeThinkerConfig
    last = shape.vocabulary - 1
    return config(
        text_config=text,
        audio_config={**_AUDIO, "output_dim": shape.hidden},
        vision_config={**_VISION, "out_hidden_size": shape.hidden},
        audio_token_id=last,
        image_token_id=last - 1,
        video_token_id=last - 2,
    )


def _draw(like: Tensor, generator: torch.Generator, *, dtype: torch.dtype) -> Tensor:
    """Norms (vectors) are one, matrices normal."""
    drawn = torch.empty(like.shape, dtype=dtype, device=generator.device)
    return drawn.fill_(1) if like.ndim == 1 else drawn.normal_(0, _STD, generator=generator)
