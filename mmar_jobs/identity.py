"""Which model answered: a base plus at most one adapter, known by digests and proven by a canary.

Not here: loading a model or asking it anything (engine/, qlora/).
"""

from collections.abc import Sequence
from typing import Final

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
    """What a model says to a fixed prompt with a fixed sound, greedily: token ids and their logprobs."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


def check_canary(expected: Canary, actual: Canary, *, model: str) -> None:
    """Raise GateError unless both canaries come from the same weights.

    Token ids are compared up to the first place where the logprobs already tell the models apart: a
    near tie may flip a later token of the very same model.
    """
    drift = max(
        (abs(a - b) for a, b in zip(expected.logprobs, actual.logprobs, strict=False)), default=0.0
    )
    if expected.token_ids == actual.token_ids and drift <= CANARY_TOLERANCE_NATS:
        return
    raise GateError(
        f"the engine does not serve model {model}: its canary answer differs from the manifest's "
        f"(largest logprob difference {drift:.4f} nats, tokens {_head(actual.token_ids)} instead of "
        f"{_head(expected.token_ids)}); load the base and adapter that the manifest names"
    )


def _head(token_ids: Sequence[int]) -> str:
    return str(list(token_ids[:6]))
