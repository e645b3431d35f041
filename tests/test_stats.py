"""Tests of the statistics against scipy, published values, simulation and brute force."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from mmar_jobs.stats import (
    above_chance,
    bootstrap_gain,
    bootstrap_gain_by_cluster,
    fisher_fewer,
    holm,
    mcnemar,
    mcnemar_greater,
    minimum_detectable_gain,
    wilson_interval,
)


@given(st.integers(0, 2_000), st.data())
def test_wilson_agrees_with_scipy(n: int, data: st.DataObject) -> None:
    """The interval is scipy's and always holds the proportion itself."""
    k = data.draw(st.integers(0, n))
    low, high = wilson_interval(k, n)
    if n == 0:
        assert (0.0, 1.0) == (low, high)
        return
    known = scipy_stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert known == pytest.approx((low, high), abs=1e-12)
    assert 0.0 <= low <= k / n <= high <= 1.0


def test_a_thousand_items_give_about_three_points() -> None:
    """The benchmark's size alone leaves an accuracy uncertain by 2.7 to 3.1 points."""
    low, high = wilson_interval(500, 1_000)
    assert 0.031 == pytest.approx((high - low) / 2, abs=5e-4)


@given(
    st.integers(0, 300) | st.integers(900, 100_000), st.integers(0, 300) | st.integers(900, 100_000)
)
def test_mcnemar_is_the_exact_binomial_test(b: int, c: int) -> None:
    """Both sides agree with scipy's binomial test on the discordant pairs."""
    if b + c == 0:
        assert 1.0 == mcnemar(b, c) == mcnemar_greater(b, c)
        return
    two_sided = scipy_stats.binomtest(c, b + c, 0.5).pvalue
    greater = scipy_stats.binomtest(c, b + c, 0.5, alternative="greater").pvalue
    assert two_sided == pytest.approx(mcnemar(b, c), rel=1e-9)
    assert greater == pytest.approx(mcnemar_greater(b, c), rel=1e-9)
    assert mcnemar(c, b) == mcnemar(b, c)


def test_mcnemar_is_right_by_hand() -> None:
    """Ten pairs all pointing one way: 2 / 1,024."""
    assert 2 / 1_024 == mcnemar(0, 10) == mcnemar(10, 0)
    assert 1 / 1_024 == mcnemar_greater(0, 10)
    assert 1.0 == mcnemar_greater(10, 0)


@pytest.mark.parametrize("discordant_rate", [0.1, 0.4])
def test_mcnemar_keeps_its_promise_under_the_null(discordant_rate: float) -> None:
    """Two equal models are called different in at most 5 % of comparisons."""
    rng = np.random.default_rng(7)
    half = discordant_rate / 2
    counts = rng.multinomial(300, [half, half, 1 - discordant_rate], size=4_000)
    rejected = np.mean([mcnemar(int(b), int(c)) < 0.05 for b, c, _ in counts])
    # Exact tests are conservative; 0.0035 is one standard deviation of the estimate at 5 %.
    assert 0.02 < rejected < 0.05 + 3 * 0.0035


def test_the_bootstrap_interval_covers_the_true_gain() -> None:
    """About 95 % of the intervals hold the gain from which the data was drawn."""
    rng = np.random.default_rng(11)
    covered = 0
    for seed in range(400):
        b, c, _ = (int(count) for count in rng.multinomial(400, [0.1, 0.2, 0.7]))
        low, high = bootstrap_gain(b, c, 400, seed=seed, num_resamples=1_000)
        covered += low <= 0.1 <= high
    assert 0.91 < covered / 400 < 0.985


@given(st.integers(0, 80), st.integers(0, 80), st.integers(0, 80), st.integers(0, 99))
def test_the_bootstrap_is_seeded_and_holds_the_estimate(
    b: int, c: int, ties: int, seed: int
) -> None:
    """The same seed gives the same interval, around the observed gain, within [-1, 1]."""
    n = b + c + ties
    low, high = bootstrap_gain(b, c, n, seed=seed, num_resamples=500)
    assert (low, high) == bootstrap_gain(b, c, n, seed=seed, num_resamples=500)
    assert -1.0 <= low <= high <= 1.0
    if n:
        assert low <= (c - b) / n <= high


def test_clusters_of_one_are_items() -> None:
    """Where no clip is shared, drawing clips is drawing questions, up to the draws' own noise."""
    gains = [-1] * 30 + [1] * 60 + [0] * 110
    ends = bootstrap_gain_by_cluster(gains, [1] * 200, seed=0)
    assert bootstrap_gain(30, 60, 200, seed=0) == pytest.approx(ends, abs=0.006)
    assert (0.0, 0.0) == bootstrap_gain_by_cluster([], [], seed=0)


def test_cluster_intervals_cover_the_true_gain() -> None:
    """Five questions of a clip that flip together: whole clips keep the promise, questions do not.

    Each of 100 clips is won as a whole in 20 %, lost in 10 %.
    """
    rng = np.random.default_rng(5)
    covered = alone = 0
    for seed in range(300):
        gains = rng.choice([-5, 5, 0], size=100, p=[0.1, 0.2, 0.7])
        low, high = bootstrap_gain_by_cluster(
            gains.tolist(), [5] * 100, seed=seed, num_resamples=1_000
        )
        covered += low <= 0.1 <= high
        lost, won = 5 * int((gains < 0).sum()), 5 * int((gains > 0).sum())
        low, high = bootstrap_gain(lost, won, 500, seed=seed, num_resamples=1_000)
        alone += low <= 0.1 <= high
    assert 0.90 < covered / 300 < 0.985
    assert alone / 300 < 0.75


@given(st.integers(1, 60) | st.integers(1, 1_000_000), st.data())
def test_fisher_agrees_with_scipy(num: int, data: st.DataObject) -> None:
    """The tail of the hypergeometric distribution, for any group of any size."""
    num_right, n = data.draw(st.integers(0, num)), data.draw(st.integers(0, num))
    k = data.draw(st.integers(max(0, n - (num - num_right)), min(n, num_right)))
    known = scipy_stats.hypergeom.cdf(k, num, num_right, n)
    assert known == pytest.approx(fisher_fewer(k, n, num_right, num), rel=1e-7, abs=1e-300)


def test_fisher_counts_with_the_uncertainty_of_both_groups() -> None:
    """The lady who tastes tea, and 52 of 86 right beside 10 of 14: no evidence, for 14 are few."""
    assert 1 / 70 == pytest.approx(fisher_fewer(0, 4, 4, 8))
    assert 0.319 == pytest.approx(fisher_fewer(52, 86, 62, 100), abs=1e-3)
    assert 1.0 == fisher_fewer(3, 7, 3, 7)


def test_holm_is_right_by_hand() -> None:
    """Holm's own recipe: multiply the smallest by m, the next by m - 1, never falling."""
    assert [0.03, 0.06, 0.06, 0.02] == pytest.approx(holm([0.01, 0.04, 0.03, 0.005]))
    assert [] == holm([])
    assert [1.0, 1.0] == holm([0.9, 0.8])


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_never_helps_and_keeps_the_order(p_values: list[float]) -> None:
    """An adjusted p-value is at least the raw one, at most Bonferroni's, and ranks alike."""
    adjusted = holm(p_values)
    for raw, value in zip(p_values, adjusted, strict=True):
        assert raw <= value <= 1.0
    pairs = sorted(zip(p_values, adjusted, strict=True))
    assert [value for _, value in pairs] == sorted(adjusted)
    if p_values:
        assert min(1.0, min(p_values) * len(p_values)) == min(adjusted)


@given(st.lists(st.integers(1, 6), max_size=6), st.data())
def test_chance_is_exact(num_choices: list[int], data: st.DataObject) -> None:
    """The tail equals what counting every possible outcome gives."""
    num_correct = data.draw(st.integers(0, len(num_choices)))
    tail = 0.0
    for hits in itertools.product((0, 1), repeat=len(num_choices)):
        if sum(hits) >= num_correct:
            tail += math.prod(
                1 / num if hit else 1 - 1 / num for hit, num in zip(hits, num_choices, strict=True)
            )
    assert tail == pytest.approx(above_chance(num_correct, num_choices), abs=1e-12)


def test_chance_with_equal_choices_is_binomial() -> None:
    """A thousand items of four choices agree with the binomial tail, far out too."""
    known = scipy_stats.binom.sf(399, 1_000, 0.25)
    assert known == pytest.approx(above_chance(400, [4] * 1_000), rel=1e-9)


def test_the_detectable_gain_is_detected_as_often_as_promised() -> None:
    """Data with exactly that gain is called different in about 80 % of simulations."""
    n, discordant_rate = 500, 0.3
    gain = minimum_detectable_gain(n, discordant_rate)
    assert gain is not None
    assert 0.068 == pytest.approx(gain, abs=1e-3)
    worse = (discordant_rate - gain) / 2
    rng = np.random.default_rng(3)
    counts = rng.multinomial(n, [worse, worse + gain, 1 - discordant_rate], size=2_000)
    power = np.mean([mcnemar(int(b), int(c)) < 0.05 for b, c, _ in counts])
    assert 0.74 < power < 0.84


def test_few_items_can_show_nothing() -> None:
    """Where even a clean sweep of the differences is no evidence there is no detectable gain."""
    assert minimum_detectable_gain(5, 0.2) is None
    assert minimum_detectable_gain(1_000, 0.0) is None
    assert minimum_detectable_gain(0, 0.5) is None


@settings(max_examples=40)
@given(st.integers(50, 5_000), st.floats(0.1, 0.9))
def test_more_items_show_smaller_gains(n: int, discordant_rate: float) -> None:
    """Twice the items never need a larger gain."""
    few, many = (minimum_detectable_gain(size, discordant_rate) for size in (n, 2 * n))
    if few is not None:
        assert many is not None
        assert many <= few <= discordant_rate


def test_impossible_counts_are_refused() -> None:
    """Counts that cannot be are a defect of the caller and never give a number."""
    with pytest.raises(ValueError, match="3 of 2"):
        wilson_interval(3, 2)
    with pytest.raises(ValueError, match="discordant pairs"):
        mcnemar(-1, 2)
    with pytest.raises(ValueError, match="discordant pairs"):
        bootstrap_gain(3, 3, 5, seed=0)
    with pytest.raises(ValueError, match="4 of 5 where 3 of 9 are right"):
        fisher_fewer(4, 5, 3, 9)
    with pytest.raises(ValueError, match="2 correct of 1"):
        above_chance(2, [4])
    with pytest.raises(ValueError, match="with choices"):
        above_chance(0, [0])
    with pytest.raises(ValueError, match="discordant rate"):
        minimum_detectable_gain(10, 1.5)
