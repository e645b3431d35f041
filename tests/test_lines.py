"""Tests of a file's lines: the fast parser says what json says."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmar_jobs.lines import Line

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


def outcome(parse: Any) -> Any:
    """The value with its type, or that there is none."""
    try:
        value = parse()
    except (ValueError, RecursionError):
        return "refused"
    return type(value), repr(value)


@given(VALUES, st.booleans())
def test_any_value_is_read_as_json_reads_it(value: Any, is_ascii: bool) -> None:
    """Numbers of any size, all of Unicode, escaped or not."""
    text = json.dumps(value, ensure_ascii=is_ascii)
    try:
        data = text.encode()
    except UnicodeEncodeError:  # a lone surrogate can only be escaped
        data = json.dumps(value).encode()
    assert repr(json.loads(data)) == repr(Line(1, 0, data).value())


@pytest.mark.parametrize(
    "data",
    [
        *(b'{"a": 1, "a": 2}', b'"\\ud800"', b"NaN", b"-Infinity", b"1e999", b"01", b"[1,]"),
        *(b"{'a': 1}", b'"\x01"', b"\xff", b'"\xed\xa0\x80"', b"", b"1 2", b"\xef\xbb\xbf{}"),
        *(b"[" * 100_000, b"9" * 5_000),
    ],
    ids=range(16),
)
def test_what_is_odd_is_read_or_refused_as_json_does(data: bytes) -> None:
    """Repeated keys, lone surrogates, what is no number, broken text, too deep, too long."""
    assert outcome(lambda: json.loads(data.decode())) == outcome(Line(1, 0, data).value)
