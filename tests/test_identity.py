"""Tests of model identity and the canary that proves it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mmar_jobs.errors import GateError
from mmar_jobs.identity import CANARY_TOLERANCE_NATS, Canary, ModelIdentity, check_canary

LOGPROBS = st.floats(-20, 0)
CANARIES = st.lists(st.tuples(st.integers(0, 999), LOGPROBS), min_size=1, max_size=8).map(
    lambda pairs: Canary(token_ids=tuple(p[0] for p in pairs), logprobs=tuple(p[1] for p in pairs))
)


@given(st.text(), st.none() | st.text(), st.text(), st.none() | st.text())
def test_hash_tells_models_apart(base: str, adapter: str | None, other: str, b: str | None) -> None:
    """Equal hashes mean equal base and adapter."""
    one = ModelIdentity(base_digest=base, adapter_digest=adapter)
    two = ModelIdentity(base_digest=other, adapter_digest=b)
    assert (one == two) == (one.hash == two.hash)


@given(CANARIES, st.floats(-0.9 * CANARY_TOLERANCE_NATS, 0.9 * CANARY_TOLERANCE_NATS))
def test_rounding_passes(canary: Canary, noise: float) -> None:
    """The same tokens with logprobs that differ by rounding are the same model."""
    shifted = Canary(
        token_ids=canary.token_ids, logprobs=tuple(value + noise for value in canary.logprobs)
    )
    check_canary(canary, shifted, model="m")


@given(CANARIES, st.data())
def test_one_wrong_logprob_is_another_model(canary: Canary, data: st.DataObject) -> None:
    """One logprob beyond rounding is enough, also one that is not a number."""
    place = data.draw(st.integers(0, len(canary.logprobs) - 1))
    shift = data.draw(st.sampled_from([0.01, -3.0, math.nan, math.inf]))
    logprobs = list(canary.logprobs)
    logprobs[place] += shift
    other = Canary(token_ids=canary.token_ids, logprobs=tuple(logprobs))
    with pytest.raises(GateError, match="does not serve model iteration 2"):
        check_canary(canary, other, model="iteration 2")


@given(CANARIES, st.data())
def test_one_wrong_token_is_another_model(canary: Canary, data: st.DataObject) -> None:
    """Equal logprobs do not excuse another token."""
    place = data.draw(st.integers(0, len(canary.token_ids) - 1))
    tokens = list(canary.token_ids)
    tokens[place] += 1
    other = Canary(token_ids=tuple(tokens), logprobs=canary.logprobs)
    with pytest.raises(GateError, match="load the base and adapter"):
        check_canary(canary, other, model="m")


@pytest.mark.parametrize(("tokens", "logprobs"), [((), ()), ((1, 2), (0.5,))])
def test_canary_must_prove_something(tokens: tuple[int, ...], logprobs: tuple[float, ...]) -> None:
    """An empty canary would equal every model's."""
    with pytest.raises(ValidationError, match="at least one token"):
        Canary(token_ids=tokens, logprobs=logprobs)


def test_shorter_canary_is_another_model() -> None:
    """A canary that stops early is not taken for the whole of it."""
    long = Canary(token_ids=(1, 2), logprobs=(-1.0, -1.0))
    short = Canary(token_ids=(1,), logprobs=(-1.0,))
    with pytest.raises(GateError, match=r"tokens \[1\] instead of \[1, 2\]"):
        check_canary(long, short, model="m")
