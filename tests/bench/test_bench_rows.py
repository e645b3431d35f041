"""Tests of the random examples of a speed run: full rows of real tokens, the same every time."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmar_jobs.bench.rows import draw_rows
from mmar_jobs.errors import SettingsError
from mmar_jobs.qlora.packing import pack

AUDIO_TOKEN = 1023


@given(st.integers(8, 20_000), st.none() | st.integers(8, 20_000), st.integers(0, 9))
def test_rows_fill_one_packed_row(tokens: int, example_tokens: int | None, seed: int) -> None:
    """The examples have exactly the tokens asked for, all have labels, and pack into one row."""
    example_tokens = min(tokens, example_tokens) if example_tokens else None
    rows, audio = draw_rows(tokens, example_tokens, hidden=4, audio_token=AUDIO_TOKEN, seed=seed)
    assert sum(row.num_tokens for row in rows) == tokens
    assert min(row.num_labels for row in rows) >= 1
    (packed,) = pack(rows, tokens)
    assert sum(packed.lengths) == tokens
    for row in rows:
        is_audio_S = row.input_ids_S == AUDIO_TOKEN
        assert audio[row.audio_sha256].shape == (int(is_audio_S.sum()), 4)
        assert not is_audio_S[row.num_prompt_tokens :].any()


def test_examples_are_as_long_as_asked_for() -> None:
    """One long sequence, or equal ones; the mix is of those that the real data has."""
    (alone,), _ = draw_rows(8192, 8192, hidden=4, audio_token=AUDIO_TOKEN, seed=0)
    equal, _ = draw_rows(8192, 1024, hidden=4, audio_token=AUDIO_TOKEN, seed=0)
    mixed, _ = draw_rows(8192, None, hidden=4, audio_token=AUDIO_TOKEN, seed=0)
    assert alone.num_tokens == 8192
    assert [row.num_tokens for row in equal] == [1024] * 8
    assert all(550 <= row.num_tokens <= 2010 for row in mixed[:-1])


def test_a_seed_names_the_rows() -> None:
    """Two runs time the same work."""
    first, _ = draw_rows(4096, None, hidden=4, audio_token=AUDIO_TOKEN, seed=3)
    again, _ = draw_rows(4096, None, hidden=4, audio_token=AUDIO_TOKEN, seed=3)
    other, _ = draw_rows(4096, None, hidden=4, audio_token=AUDIO_TOKEN, seed=4)
    assert torch.equal(first[0].input_ids_S, again[0].input_ids_S)
    assert [row.num_tokens for row in first] != [row.num_tokens for row in other]


@pytest.mark.parametrize(("tokens", "example_tokens"), [(7, None), (64, 7), (64, 65)])
def test_impossible_rows_are_refused(tokens: int, example_tokens: int | None) -> None:
    """Rows that are too short, and examples longer than their row, are wrong settings."""
    with pytest.raises(SettingsError):
        draw_rows(tokens, example_tokens, hidden=4, audio_token=AUDIO_TOKEN, seed=0)
