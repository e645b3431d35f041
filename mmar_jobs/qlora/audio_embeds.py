"""Audio embeddings of clips, computed once per clip because the tower is frozen.

Not here: mel features (mmar_jobs/encode.py), the tower's weights.

Legend: B clips, M mel bins, F frames, A audio tokens of a clip, H hidden.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmar_jobs.errors import GateError
from mmar_jobs.qlora.foreign import Thinker


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


class AudioEmbeds(Mapping[str, Tensor]):
    """Embeddings by clip digest, in memory; (A, H) each.

    A clip is embedded once, however often asked.
    """

    def __init__(self, model: Thinker, *, clips_per_batch: int = 32) -> None:
        self._model = model
        self._clips_per_batch = clips_per_batch
        self._embeds: dict[str, Tensor] = {}

    def __getitem__(self, audio_sha256: str) -> Tensor:
        return self._embeds[audio_sha256]

    def __iter__(self) -> Iterator[str]:
        return iter(self._embeds)

    def __len__(self) -> int:
        return len(self._embeds)

    def add(self, clips: Sequence[MelFeatures], num_tokens: Sequence[int]) -> None:
        """Embed the clips that are not here yet; `num_tokens` as in embed_clips."""
        new: dict[str, tuple[MelFeatures, int]] = {}
        for clip, count in zip(clips, num_tokens, strict=True):
            if clip.audio_sha256 not in self._embeds:
                new[clip.audio_sha256] = (clip, count)
        pairs = list(new.values())
        for start in range(0, len(pairs), self._clips_per_batch):
            batch = pairs[start : start + self._clips_per_batch]
            embeds = embed_clips(
                self._model, [clip for clip, _ in batch], [count for _, count in batch]
            )
            for (clip, _), embeds_AH in zip(batch, embeds, strict=True):
                self._embeds[clip.audio_sha256] = embeds_AH
