"""Audio embeddings of clips, computed once per clip because the tower is frozen.

Not here: mel features (mmar_jobs/encode.py), where the files come from (stages/clip_embeds.py).

Legend: B clips, M mel bins, F frames, A audio tokens of a clip, H hidden.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import __version__ as transformers_version

from mmar_jobs.errors import GateError
from mmar_jobs.qlora.foreign import Thinker

CLIPS_PER_BATCH: Final = 32  # 30-s clips of the 30B model's tower: 3 GB at its widest

_FORMAT: Final = "1"

# (A, H) of each clip, by its digest.
Embeds: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class MelFeatures:
    """Log-mel features of one clip, (M, F) fp32, 100 frames a second, without padding."""

    audio_sha256: str
    features_MF: Tensor


@torch.no_grad()
def embed_clips(
    model: Thinker, clips: Sequence[MelFeatures], num_tokens: Sequence[int]
) -> list[Tensor]:
    """Run the tower over B clips at once; returns each clip's (A, H) in the model's dtype.

    `num_tokens[b]` is the number of audio tokens in clip b's prompt; another number of embeddings
    is a GateError.
    """
    tower = model.audio_tower
    lengths_B = torch.tensor([clip.features_MF.shape[1] for clip in clips], device=tower.device)
    features_MF = torch.cat([clip.features_MF for clip in clips], dim=1).to(tower.device)
    embeds_AH = tower(features_MF, feature_lens=lengths_B).last_hidden_state
    if embeds_AH.shape[0] != sum(num_tokens):
        raise GateError(
            f"the audio tower made {embeds_AH.shape[0]} embeddings for {sum(num_tokens)} audio "
            f"tokens in the prompts of {len(clips)} clips: processor and model do not fit together"
        )
    return [embeds.clone() for embeds in embeds_AH.split(list(num_tokens))]


def embed_window(model: Thinker, clips: Sequence[MelFeatures], num_tokens: Sequence[int]) -> Embeds:
    """Embeddings of many clips by digest, (A, H) each on the CPU; `num_tokens` as in embed_clips.

    Clips of about one length run through the tower together on a GPU. On a CPU, where results are
    promised bit for bit, each runs alone: the sums of a product depend on its neighbours.
    """
    device = model.audio_tower.device
    size = CLIPS_PER_BATCH if device.type == "cuda" else 1
    pairs = sorted(
        zip(clips, num_tokens, strict=True),
        key=lambda pair: (pair[0].features_MF.shape[1], pair[0].audio_sha256),
    )
    found: dict[str, Tensor] = {}
    for start in range(0, len(pairs), size):
        batch = pairs[start : start + size]
        embeds = embed_clips(model, [clip for clip, _ in batch], [count for _, count in batch])
        for (clip, _), embeds_AH in zip(batch, embeds, strict=True):
            found[clip.audio_sha256] = embeds_AH.cpu()
    return found


def write_embeds(embeds: Embeds, path: Path) -> None:
    """Write embeddings as AudioEmbeds opens them; equal ones give equal bytes."""
    save_file({clip: embeds[clip].contiguous() for clip in sorted(embeds)}, path)


def tower_facts(base_digest: str, dtype: str, device: torch.device) -> dict[str, str]:
    """All that changes a clip's embedding: weights and processor, precision, kernels, code."""
    return {
        "format": _FORMAT,
        "base_digest": base_digest,
        "dtype": dtype,
        "device": device.type,
        "torch": str(torch.__version__),
        "transformers": transformers_version,
    }


class AudioEmbeds(Mapping[str, Tensor]):
    """Embeddings by clip digest, (A, H) each, in safetensors files that are read when asked."""

    def __init__(self) -> None:
        self._files: dict[str, Any] = {}

    def __getitem__(self, audio_sha256: str) -> Tensor:
        embeds_AH: Tensor = self._files[audio_sha256].get_tensor(audio_sha256)
        return embeds_AH

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def open(self, path: Path) -> None:
        """Add all embeddings of a file, which must stay where it is; ValueError if it is none."""
        try:
            file = safe_open(path, framework="pt")
            self._files |= dict.fromkeys(file.keys(), file)  # type: ignore[no-untyped-call]
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file: {error}") from error
