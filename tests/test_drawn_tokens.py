"""Tests of the packed tokens that generate records for a policy gradient."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmar_jobs.drawn_tokens import LOWEST_NATS, MAX_ROUNDING_NATS, pack_tokens, unpack_tokens
from mmar_jobs.errors import DataError

TOKENS = st.lists(
    st.tuples(st.integers(0, 2**24 - 1), st.floats(LOWEST_NATS, 0, allow_nan=False)), max_size=40
)


@given(TOKENS)
def test_tokens_come_back(tokens: list[tuple[int, float]]) -> None:
    """Ids are exact, log-probabilities off by half a step at most; five bytes hold a token."""
    ids, logprobs = [token for token, _ in tokens], [logprob for _, logprob in tokens]
    packed = pack_tokens(ids, logprobs)
    found = unpack_tokens(packed)
    assert ids == found.ids.tolist()
    assert np.abs(found.logprobs - np.array(logprobs)).max(initial=0) <= MAX_ROUNDING_NATS + 1e-6
    assert len(packed) == -(-5 * len(tokens) // 3) * 4


@pytest.mark.parametrize("logprob", [-17.0, -9999.0, float("-inf")])
def test_what_is_all_but_impossible_stays_at_the_lowest(logprob: float) -> None:
    """Servers write -9999 for a probability of zero; a ratio to it must stay a number."""
    assert unpack_tokens(pack_tokens([1], [logprob])).logprobs[0] == pytest.approx(LOWEST_NATS)


def test_a_rounding_above_zero_is_zero() -> None:
    """Softmax in bf16 may give a log-probability of +1e-4."""
    assert unpack_tokens(pack_tokens([1], [1e-3])).logprobs[0] == 0


@pytest.mark.parametrize("damaged", ["AAA", "AAAA", "AAAAAAA*", "ÄAAAAAA="])
def test_damage_is_named(damaged: str) -> None:
    """A cut or changed string is refused in one line."""
    with pytest.raises(DataError, match="damaged"):
        unpack_tokens(damaged)


def test_a_token_without_its_number_is_refused() -> None:
    """Lists of unlike length are a defect of an engine."""
    with pytest.raises(ValueError, match="2 tokens with 1"):
        pack_tokens([1, 2], [-0.5])
