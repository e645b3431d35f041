"""Choosing tokens from logits so that a draw's randomness depends on nothing but its own name.

Not here: the model. Each (question, draw) owns a counter-based stream of uniform numbers, one per
token, so neither batch neighbours nor a restart can change what it draws.

Legend: R rows, V vocabulary, T longest completion.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mmar_jobs.engine import Sampling


def draw_seed(seed: int, question_id: str, draw: int) -> int:
    """The 63-bit seed of one draw, from the seed that its candidate records."""
    digest = hashlib.sha256(f"{seed}\0{question_id}\0{draw}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class TokenChooser:
    """Applies one Sampling to rows whose draws have the given seeds."""

    def __init__(self, sampling: Sampling, seeds: Sequence[int]) -> None:
        self._greedy = sampling.temperature == 0
        self._warp = _warpers(sampling)
        if not self._greedy:
            uniforms = [
                np.random.Generator(np.random.Philox(key=seed)).random(sampling.max_tokens)
                for seed in seeds
            ]
            self._uniform_RT = torch.from_numpy(np.stack(uniforms))

    def choose(
        self, logits_RV: Tensor, history: Tensor, rows: Tensor, position: int
    ) -> tuple[Tensor, Tensor]:
        """Token id and its logprob (nats, of the unchanged softmax) for each of `rows`.

        `history` (R, so far) holds the tokens seen by a repetition penalty, `rows` (R,) the indices
        of these rows among the seeds, `position` the index of the token within the completion.
        """
        logprobs_RV = torch.log_softmax(logits_RV.float(), dim=-1)
        scores_RV: Tensor = logits_RV.float()
        for warp in self._warp:
            scores_RV = warp(history, scores_RV)
        if self._greedy:
            chosen_R = scores_RV.argmax(dim=-1)
        else:
            chosen_R = self._inverse_cdf(scores_RV, self._uniform_RT[rows.cpu(), position])
        return chosen_R, logprobs_RV.gather(1, chosen_R[:, None])[:, 0]

    @staticmethod
    def _inverse_cdf(scores_RV: Tensor, uniform_R: Tensor) -> Tensor:
        """One draw per row from softmax(scores): the first token whose cumulated share passes u."""
        cumulated_RV = torch.softmax(scores_RV.double(), dim=-1).cumsum(dim=-1)
        total_R = cumulated_RV[:, -1]
        # Below the row's own total, or rounding could run past the last allowed token.
        below_R = torch.nextafter(total_R, torch.zeros_like(total_R))
        targets_R = torch.minimum(uniform_R.to(scores_RV.device) * total_R, below_R)
        return torch.searchsorted(cumulated_RV, targets_R[:, None], right=True)[:, 0]


def _warpers(sampling: Sampling) -> LogitsProcessorList:
    """Transformers' own processors, in the order in which its generate() applies them."""
    warpers = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        warpers.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature not in (0, 1):
        warpers.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.temperature and sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.temperature and sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    return warpers
