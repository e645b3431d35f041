"""Which model answered: a base plus at most one adapter, known by digests and proven by a canary.

Not here: loading a model or asking it anything (engine/, qlora/).
"""

import math
from collections.abc import Sequence
from typing import Final, Self

from pydantic import model_validator

from mmar_jobs.errors import GateError
from mmar_jobs.manifest import canonical_json, sha256
from mmar_jobs.records import Record

# fp32 on one machine repeats to the last bit; across batch shapes and thread counts 1e-4 was seen.
CANARY_TOLERANCE_NATS: Final = 2e-3


class ModelIdentity(Record):
    """A model is its base folder's digest and its adapter's digest; nothing else names it."""

    base_digest: str
    adapter_digest: str | None = None

    @property
    def hash(self) -> str:
        """Digest that every candidate carries."""
        return sha256(canonical_json([self.base_digest, self.adapter_digest]))


class Canary(Record):
    """A model's greedy answer to a fixed prompt and sound: token ids and their logprobs."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if not self.token_ids or len(self.token_ids) != len(self.logprobs):
            raise ValueError("needs at least one token, and one logprob for each")
        return self


def check_canary(expected: Canary, actual: Canary, *, model: str) -> None:
    """Raise GateError unless both canaries come from the same weights.

    All token ids must be equal, and no logprob may be further off than rounding explains.
    """
    drifts = [abs(a - b) for a, b in zip(expected.logprobs, actual.logprobs, strict=False)]
    if expected.token_ids == actual.token_ids and all(
        drift <= CANARY_TOLERANCE_NATS for drift in drifts
    ):
        return
    drift = max(drifts, key=lambda value: math.inf if math.isnan(value) else value)
    raise GateError(
        f"the engine does not serve model {model}: its canary answer differs from the manifest's "
        f"(largest logprob difference {drift:.4f} nats, tokens {_head(actual.token_ids)} instead "
        f"of {_head(expected.token_ids)}); load the base and adapter that the manifest names"
    )


def _head(token_ids: Sequence[int]) -> str:
    return str(list(token_ids[:6]))
