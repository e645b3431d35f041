"""Tests of the mix and of the split: exact counts, and no sound on two sides."""

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmar_jobs.datasets.heldout import group, split
from mmar_jobs.datasets.mixing import apportion, choose, mix
from mmar_jobs.errors import SettingsError

RATIOS = st.dictionaries(
    st.sampled_from("abcde"), st.fractions(min_value="1/50", max_value=50), min_size=1
)
# Questions by number; each has some sounds out of few, so that chains form.
KEYS = st.lists(st.lists(st.sampled_from("ABCDEFGHIJKL"), min_size=1, max_size=3), max_size=40)


@given(RATIOS, st.integers(0, 10_000))
def test_shares_are_exact_up_to_rounding(ratios: dict[str, Fraction], total: int) -> None:
    """They add up to the total, and each is its exact share rounded up or down."""
    counts = apportion(ratios, total)
    assert total == sum(counts.values())
    for name, ratio in ratios.items():
        assert abs(counts[name] - total * ratio / sum(ratios.values())) < 1


@given(RATIOS, st.data())
def test_a_mix_takes_the_most_that_keeps_the_ratios(
    ratios: dict[str, Fraction], data: st.DataObject
) -> None:
    """No source gives more than it has, and one question more would break a ratio."""
    available = {name: data.draw(st.integers(0, 500)) for name in ratios}
    counts = mix(available, dict(ratios), None)
    assert all(counts[name] <= available[name] for name in ratios)
    total = sum(counts.values())
    one_more = apportion(ratios, total + 1)
    assert any(one_more[name] > available[name] for name in ratios)
    if total:
        assert counts == apportion(ratios, total)


def test_without_ratios_everything_is_taken() -> None:
    """A total then takes of each source what it has a share of."""
    assert {"a": 30, "b": 10} == mix({"a": 30, "b": 10}, {"a": None, "b": None}, None)
    assert {"a": 15, "b": 5} == mix({"a": 30, "b": 10}, {"a": None, "b": None}, 20)
    assert {"a": 7, "b": 0} == mix({"a": 7, "b": 0}, {"a": None, "b": None}, None)
    assert {"a": 0} == mix({"a": 0}, {"a": None}, None)


def test_contradictions_are_refused() -> None:
    """Half of the ratios, and more than there is."""
    with pytest.raises(SettingsError, match="give all or none"):
        mix({"a": 1, "b": 1}, {"a": None, "b": Fraction(1)}, None)
    with pytest.raises(SettingsError, match="needs 20 questions of a, which has 10"):
        mix({"a": 10, "b": 90}, {"a": Fraction(1), "b": Fraction(1)}, 40)


@given(st.sets(st.text(max_size=4)), st.integers(0, 30), st.integers(0, 9))
def test_choosing_is_exact_and_seeded(ids: set[str], count: int, seed: int) -> None:
    """As many as asked for, the same for the same seed whatever their order."""
    chosen = choose(sorted(ids), count, seed)
    assert chosen <= ids
    assert min(count, len(ids)) == len(chosen)
    assert chosen == choose(sorted(ids, reverse=True), count, seed)


@given(KEYS, st.floats(0, 0.9), st.integers(0, 5))
def test_no_sound_is_on_two_sides(keys: list[list[str]], share: float, seed: int) -> None:
    """Neither a file, nor a video, nor a group of copies, nor what these tie together."""
    by_id = {f"q{i}": own for i, own in enumerate(keys)}
    strata = {name: f"s{i % 3}" for i, name in enumerate(by_id)}
    held = split(by_id, strata, share=share, seed=seed)
    sides = [
        {key for name, own in by_id.items() for key in own if (name in held) == side}
        for side in (True, False)
    ]
    assert set() == sides[0] & sides[1]
    assert held == split(by_id, strata, share=share, seed=seed)
    assert {name for own in group(by_id).values() for name in own} == set(by_id)


@given(st.integers(20, 400), st.integers(20, 400), st.floats(0.02, 0.5), st.integers(0, 9))
def test_every_category_has_its_share(many: int, few: int, share: float, seed: int) -> None:
    """Where each question has a sound of its own, shares are met to one question."""
    strata = {f"a{i}": "a" for i in range(many)} | {f"b{i}": "b" for i in range(few)}
    held = split({name: [name] for name in strata}, strata, share=share, seed=seed)
    found = Counter(strata[name] for name in held)
    assert abs(found["a"] - share * many) <= 1
    assert abs(found["b"] - share * few) <= 1


def test_seeds_hold_out_different_questions() -> None:
    """Or the seed would be a promise without a content."""
    strata = dict.fromkeys(map(str, range(100)), "a")
    keys = {name: [name] for name in strata}
    sides = [split(keys, strata, share=0.3, seed=seed) for seed in (0, 1)]
    assert sides[0] != sides[1]
