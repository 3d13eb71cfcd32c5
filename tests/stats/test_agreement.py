"""Agreement and its error bars, against scipy and against counting by hand."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from support.scorings import equal, paired, usable

from sp_rerank.stats import agreement


def tau_b_by_counting(points):
    signs = [(np.sign(a[0] - b[0]), np.sign(a[1] - b[1])) for a, b in combinations(points, 2)]
    untied = [sum(sign[side] != 0 for sign in signs) for side in (0, 1)]
    return sum(x * y for x, y in signs) / math.sqrt(untied[0] * untied[1]) if all(untied) else math.nan


@given(paired())
@settings(max_examples=100)
def test_kendall_is_tau_b_of_the_finite_places(scores):
    assert equal(agreement.kendall(*scores), tau_b_by_counting(usable(*scores)))


@given(paired())
@settings(max_examples=40)
def test_spearman_and_pearson_are_scipys(scores):
    points = usable(*scores)
    a, b = ([point[side] for point in points] for side in (0, 1))
    defined = len(set(a)) > 1 and len(set(b)) > 1
    assert equal(agreement.spearman(*scores).value, stats.spearmanr(a, b).statistic if defined else math.nan)
    assert equal(agreement.pearson(*scores).value, stats.pearsonr(a, b).statistic if defined else math.nan)


@pytest.mark.parametrize("of", ["kendall", "spearman", "pearson"])
def test_one_score_or_equal_ones_have_no_correlation(of):
    for a, b in [([], []), ([1], [2]), ([1, 1], [1, 2]), ([0.1] * 3, [1, 2, 3]), ([1, math.nan], [1, 2])]:
        found = getattr(agreement, of)(a, b)
        assert math.isnan(found if of == "kendall" else found.value)


def test_scores_of_another_number_are_refused():
    with pytest.raises(ValueError, match="one length"):
        agreement.kendall([1, 2], [1, 2, 3])


@given(paired(), st.integers(0, 10))
@settings(max_examples=100)
def test_top_k_overlap_counts_what_both_have(scores, k):
    def best(values):
        return sorted((i for i, v in enumerate(values) if math.isfinite(v)), key=lambda i: (-values[i], i))[:k]

    expected = len(set(best(scores[0])) & set(best(scores[1]))) / k if 0 < k <= len(scores[0]) else math.nan
    assert equal(agreement.top_k_overlap(*scores, k), expected)


# Intervals


def test_a_ratio_is_of_sums_and_its_interval_of_units():
    right, pairs = [3, 0, 6, 2], [3, 3, 6, 4]
    estimate = agreement.ratio(right, pairs, seed=1)
    assert (estimate.value, estimate.n) == (11 / 16, 16)
    assert estimate.low < estimate.value < estimate.high
    assert estimate == agreement.ratio(right, pairs, seed=1)
    drawn = np.random.default_rng(0).integers(4, size=(20_000, 4))
    low, high = np.quantile(np.take(right, drawn).sum(1) / np.take(pairs, drawn).sum(1), [0.025, 0.975])
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.03)


def test_a_ratio_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    estimates = [agreement.ratio(rng.random(60) < 0.7, np.ones(60), seed=i) for i in range(60)]
    assert sum(e.low <= 0.7 <= e.high for e in estimates) >= 52  # 95 % of 60 is 57


def test_a_ratio_without_units_or_with_one_has_no_interval():
    nothing, one, empty = (agreement.ratio(a, b) for a, b in [([], []), ([1], [2]), ([0, 0], [0, 0])])
    assert math.isnan(nothing.value)
    assert one.value == 0.5
    assert math.isnan(empty.value)
    assert all(math.isnan(e.low) and math.isnan(e.high) for e in (nothing, one, empty))


def test_units_without_pairs_change_nothing_but_the_interval():
    estimate = agreement.ratio([1, 0, 0], [2, 0, 0])
    assert (estimate.value, estimate.low, estimate.high) == (0.5, 0.5, 0.5)


def test_a_correlation_is_resampled_by_point():
    a = np.linspace(0, 1, 12)
    b = a + np.tile([0.2, -0.2], 6)
    for of, reference in [(agreement.pearson, stats.pearsonr), (agreement.spearman, stats.spearmanr)]:
        estimate = of(a, b)
        assert estimate.value == pytest.approx(reference(a, b).statistic)
        assert -1 < estimate.low < estimate.value < estimate.high <= 1
        assert estimate.n == 12
        assert of([*a, math.nan], [*b, 1.0]) == estimate
    few = agreement.pearson([1, 2, 3], [1, 2, 4])  # resamples of one point say nothing, and are left out
    assert few.low <= few.value <= few.high


def test_kendall_has_the_interval_of_resampled_points():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 6, 25) / 4  # with ties
    b = a + rng.normal(size=25)
    found = agreement.kendall_interval(a, b)
    drawn = np.random.default_rng(1).integers(25, size=(600, 25))
    low, high = np.quantile([stats.kendalltau(a[places], b[places]).statistic for places in drawn], [0.025, 0.975])
    assert (found.value, found.n) == (agreement.kendall(a, b), 25)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.05)
    assert agreement.kendall_interval([*a, math.nan], [*b, 1.0]) == found


@given(paired())
@settings(max_examples=40)
def test_an_interval_of_kendall_is_defined_where_kendall_is(scores):
    found = agreement.kendall_interval(*scores)
    assert equal(found.value, agreement.kendall(*scores))
    assert found.n == len(usable(*scores))
    if math.isnan(found.value):
        assert math.isnan(found.low)
        assert math.isnan(found.high)
    else:
        assert -1 - 1e-9 <= found.low <= found.high <= 1 + 1e-9
