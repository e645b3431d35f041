"""The sizes that rows are padded to before they are replayed.

Not here: capturing and replaying (tests/gpu/test_graphs.py).
"""

from hypothesis import given
from hypothesis import strategies as st

from mmar_jobs.qlora.graphs import RowSize, padded_tokens

LENGTHS = st.lists(st.integers(1, 5000), min_size=1, max_size=40)


@given(lengths=LENGTHS, threshold=st.integers(0, 65_535))
def test_a_row_fits_its_size(lengths: list[int], threshold: int) -> None:
    """With its padding as one sequence more, which is no longer than the longest."""
    size = RowSize.of(lengths, threshold)
    padding = size.tokens - sum(lengths)
    assert 0 <= padding < 256
    assert len(lengths) < size.num_sequences
    assert max(*lengths, padding) <= size.longest <= size.tokens
    assert size.threshold == threshold


@given(lengths=LENGTHS)
def test_rows_alike_share_a_size(lengths: list[int]) -> None:
    """Order says nothing, and neither does one token where the padding has room for it."""
    size = RowSize.of(lengths, 0)
    assert RowSize.of(sorted(lengths), 0) == size
    if sum(lengths) < size.tokens and min(lengths) < max(lengths):
        lengths[lengths.index(min(lengths))] += 1
        assert RowSize.of(lengths, 0) == size


def test_sizes_of_packed_rows() -> None:
    """As packing makes them."""
    assert RowSize.of([300, 700, 30], 3) == RowSize(1280, 8, 1024, 3)
    assert RowSize.of([100] * 8, 0).num_sequences == 16
    assert [padded_tokens(n) for n in (1, 256, 257)] == [256, 256, 512]
