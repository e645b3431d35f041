"""The tokens of a completion with the log-probabilities they were drawn at, packed into one string.

Pure. Not here: drawing them (engine/), learning from them (qlora/policy.py).

Text is not enough to learn from a draw: a model need not write a text in the tokens in which its
tokenizer would read it. Log-probabilities are those of the model itself, the softmax before any
temperature, penalty or truncation; the trainer computes the same. Five bytes a token: three of its
id, two of its log-probability in steps of 1/4096 nat, so off by at most 0.00013; below -16 nats,
where one token in nine million is drawn, it stays at -16.
"""

import base64
from array import array
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmar_jobs.errors import DataError

_ID_BYTES: Final = 3
_BYTES: Final = _ID_BYTES + 2
_STEPS: Final = 4096
MAX_ROUNDING_NATS: Final = 0.5 / _STEPS
LOWEST_NATS: Final = -float(np.iinfo(np.uint16).max) / _STEPS


class DrawnTokens(NamedTuple):
    """Token ids, int64, and their log-probabilities in nats, float32, one each."""

    ids: NDArray[np.int64]
    logprobs: NDArray[np.float32]


def pack_tokens(ids: Sequence[int], logprobs: Sequence[float]) -> str:
    """One string of 20 characters for three tokens; read again by unpack_tokens."""
    if len(ids) != len(logprobs):
        raise ValueError(f"{len(ids)} tokens with {len(logprobs)} log-probabilities")
    # An array of Python's is made of a list three times as fast as numpy's.
    id_bytes = np.frombuffer(array("I", ids), "<u4").view(np.uint8).reshape(-1, 4)
    assert not id_bytes[:, _ID_BYTES:].any(), "no vocabulary has 2^24 tokens"
    steps = np.rint(np.asarray(logprobs, np.float64) * -_STEPS)
    clipped = np.clip(steps, 0, np.iinfo(np.uint16).max).astype("<u2")
    return base64.b64encode(id_bytes[:, :_ID_BYTES].tobytes() + clipped.tobytes()).decode()


def unpack_tokens(packed: str) -> DrawnTokens:
    """The tokens of a string from pack_tokens; a DataError for any other."""
    try:
        data = np.frombuffer(base64.b64decode(packed, validate=True), np.uint8)
    except ValueError as error:  # binascii.Error is one
        raise DataError(f"packed tokens are damaged ({error}): generate them again") from None
    num_tokens, rest = divmod(len(data), _BYTES)
    if rest:
        raise DataError(f"packed tokens are damaged ({len(data)} bytes): generate them again")
    id_bytes = np.zeros((num_tokens, 4), np.uint8)
    id_bytes[:, :_ID_BYTES] = data[: num_tokens * _ID_BYTES].reshape(-1, _ID_BYTES)
    steps = data[num_tokens * _ID_BYTES :].view("<u2")
    return DrawnTokens(
        id_bytes.view("<u4")[:, 0].astype(np.int64), (steps / -np.float32(_STEPS)).astype("f4")
    )
