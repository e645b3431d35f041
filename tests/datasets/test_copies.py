"""Tests of copies within one set: each pair once, the earlier one first, half of the shorter."""

import pytest

from mmar_jobs.datasets.copies import find_copies
from mmar_jobs.progress import no_bar
from tests.datasets.print_cases import cut_out, damaged, joined, print_of
from tests.fakes import Track


def test_half_of_the_shorter_clip_makes_a_copy() -> None:
    """A whole, a cut of it, and one that holds a third of it among other things."""
    whole = print_of(1, 300)
    prints = {
        "other": print_of(2, 300),
        "whole": whole,
        "cut": damaged(cut_out(whole, 100, 200), 0.01),
        "third": joined(print_of(3, 100), cut_out(whole, 0, 100), print_of(4, 200)),
        "again": damaged(whole, 0.01),
    }
    found = list(find_copies(prints, no_bar))
    assert {("whole", "cut"), ("whole", "again"), ("cut", "again")} == {
        (copy.first, copy.second) for copy in found
    }
    assert all(0.9 < copy.share <= 1 for copy in found)


@pytest.mark.parametrize("block", [1, 3, 7, 50])
def test_blocks_change_nothing(block: int) -> None:
    """Memory is bounded by the block; pairs within and over blocks are found once."""
    prints = {f"c{i}": damaged(print_of(i % 6, 90), 0.02, i) for i in range(20)}
    expected = {(f"c{i}", f"c{j}") for i in range(20) for j in range(i + 1, 20) if i % 6 == j % 6}
    track = Track()
    found = [(copy.first, copy.second) for copy in find_copies(prints, track, block=block)]
    assert len(expected) == len(found)
    assert expected == set(found)
    assert track.done == track.totals != {}
