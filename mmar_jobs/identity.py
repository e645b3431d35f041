"""Which model answered: a base plus at most one adapter, known by digests and proven by a canary.

Not here: loading a model or asking it anything (engine/, qlora/).
"""

import math
from collections.abc import Sequence
from itertools import takewhile
from typing import Final, Self

from pydantic import model_validator

from mmar_jobs.errors import GateError
from mmar_jobs.manifest import canonical_json, sha256
from mmar_jobs.records import Record

# fp32 on one machine repeats to the last bit; across batch shapes and thread counts 1e-4 was seen.
CANARY_TOLERANCE_NATS: Final = 2e-3
# Between kernels of two programs in bfloat16; 0.026 was seen on the tiny model.
BFLOAT16_TOLERANCE_NATS: Final = 0.1


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


def check_canary(
    expected: Canary,
    actual: Canary,
    *,
    model: str,
    tolerance_nats: float = CANARY_TOLERANCE_NATS,
) -> None:
    """Raise GateError unless both canaries come from the same weights.

    All token ids must be equal, and no logprob may be further off than rounding explains. Where
    rounding is coarse it may also decide between two tokens; what comes after them is not compared.
    """
    num_equal = _num_equal(expected.token_ids, actual.token_ids)
    may_part = tolerance_nats > CANARY_TOLERANCE_NATS
    has_parted = num_equal < min(len(expected.token_ids), len(actual.token_ids))
    is_same = expected.token_ids == actual.token_ids or (may_part and has_parted)
    drifts = [abs(a - b) for a, b in zip(expected.logprobs, actual.logprobs, strict=False)]
    if is_same and all(drift <= tolerance_nats for drift in drifts[: num_equal + 1]):
        return
    drift = max(drifts, key=lambda value: math.inf if math.isnan(value) else value)
    raise GateError(
        f"the engine does not serve model {model}: its canary answer differs from the manifest's "
        f"(largest logprob difference {drift:.4f} nats, tokens {_head(actual.token_ids)} instead "
        f"of {_head(expected.token_ids)}); load the base and adapter that the manifest names"
    )


def _num_equal(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _head(token_ids: Sequence[int]) -> str:
    return str(list(token_ids[:6]))
