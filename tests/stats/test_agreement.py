"""Agreement and its error bars, against scipy and against counting by hand."""

import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from sp_rerank.stats import agreement

# Few values, so that ties are common, and what is no score
SCORE = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, math.nan, math.inf, -math.inf])
FINITE = st.integers(-6, 6).map(lambda quarters: quarters / 4)


@st.composite
def paired(draw, value=SCORE, smallest=0):
    n = draw(st.integers(smallest, 9))
    return [draw(st.lists(value, min_size=n, max_size=n)) for _ in range(2)]


def usable(a, b):
    return [(x, y) for x, y in zip(a, b, strict=True) if math.isfinite(x) and math.isfinite(y)]


def tau_b_by_counting(points):
    signs = [(np.sign(a[0] - b[0]), np.sign(a[1] - b[1])) for a, b in combinations(points, 2)]
    untied = [sum(sign[side] != 0 for sign in signs) for side in (0, 1)]
    return sum(x * y for x, y in signs) / math.sqrt(untied[0] * untied[1]) if all(untied) else math.nan


def equal(value, expected):
    return value == pytest.approx(expected, abs=1e-9, nan_ok=True)


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
    low, high = np.quantile([stats.kendalltau(a[one], b[one]).statistic for one in drawn], [0.025, 0.975])
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


# The best of n


def best_of_every_set(points, n):
    """The mean worth of the best of each set of n, a tie decided by an even draw."""
    bests = []
    for chosen in combinations(points, n):
        top = max(score for score, _ in chosen)
        tied = [worth for score, worth in chosen if score == top]
        bests.append(sum(tied) / len(tied))
    return sum(bests) / len(bests)


@given(paired())
@settings(max_examples=60)
def test_the_best_of_n_is_the_mean_over_all_sets_of_n(scores):
    first, second = scores
    own = [(s, s) for s in first if math.isfinite(s)]
    for found, points in [(agreement.best_of_n(first), own), (agreement.best_of_n(first, second), usable(*scores))]:
        assert len(found) == len(points)
        assert found == pytest.approx([best_of_every_set(points, n + 1) for n in range(len(points))])


def test_the_best_of_n_of_a_thousand_is_exact():
    scores = np.random.default_rng(0).normal(loc=1e3, size=1000)
    found = agreement.best_of_n(scores)
    ordered = [Fraction(float(score)) for score in np.sort(scores)]
    for n in (1, 2, 10, 500, 999, 1000):
        sets = sum(score * math.comb(i, n - 1) for i, score in enumerate(ordered))
        assert found[n - 1] == pytest.approx(float(sets / math.comb(1000, n)), rel=1e-13)
    assert np.all(np.diff(found) > 0)


def test_the_best_of_n_at_its_ends():
    assert agreement.best_of_n([]).tolist() == []
    assert agreement.best_of_n([0.5]).tolist() == [0.5]
    assert agreement.best_of_n([math.nan, 2.0, math.inf]).tolist() == [2.0]
    assert agreement.best_of_n([1.0, 1.0, 1.0], [0.0, 3.0, 6.0]) == pytest.approx([3, 3, 3])  # no better than chance
    worse = agreement.best_of_n([1.0, 2.0, 3.0], [3.0, 4.0, 0.0])
    assert worse.argmax() == 0  # to the other scorer, every further candidate makes the pick worse
    with pytest.raises(ValueError, match="one length"):
        agreement.best_of_n([1.0], [1.0, 2.0])


@given(st.lists(FINITE, max_size=9), st.sampled_from([0.0, 0.5, 0.95, 1.0]))
@example([0.5, -0.75, -1.5], 1.0)
def test_enough_is_the_first_that_reaches_the_share(scores, share):
    curve = agreement.best_of_n(scores)
    n = agreement.enough(curve, share)
    if not scores:
        assert n == 0
        return
    wanted = min(curve[0] + share * (curve[-1] - curve[0]), curve[-1])
    assert curve[n - 1] >= wanted
    assert n == 1 or curve[n - 2] < wanted


# Calibration


def pairs_of(temperature, n, seed=0):
    rng = np.random.default_rng(seed)
    gaps = rng.normal(size=n)
    return gaps, (rng.random(n) < 1 / (1 + np.exp(-gaps / temperature))).astype(float)


def test_the_temperature_of_simulated_people_is_found():
    calibration = agreement.calibrate(*pairs_of(0.5, 20_000))
    assert calibration.temperature == pytest.approx(0.5, rel=0.05)
    assert calibration.error < 0.02
    assert sum(one.n for one in calibration.bins) == 20_000


@given(paired(FINITE, smallest=2), st.data())
@settings(max_examples=50)
def test_the_temperature_is_the_most_likely_one(scores, data):
    gaps = np.subtract(*scores)
    labels = np.array(data.draw(st.lists(st.sampled_from([0, 0.5, 1]), min_size=len(gaps), max_size=len(gaps))))

    def loss(steepness):
        return np.mean(np.logaddexp(0, gaps * steepness) - labels * gaps * steepness)

    found = agreement.calibrate(gaps, labels)
    assert found == agreement.calibrate(-gaps, 1 - labels)
    best = optimize.minimize_scalar(loss, bounds=(0, 60), method="bounded").fun
    if math.isnan(found.temperature):
        assert not gaps.any()
    else:
        steepness = 60 if found.temperature == 0 else 1 / found.temperature
        assert loss(steepness) <= best + 1e-6


def test_calibration_by_hand():
    # Gaps of 1, three of four in the right order: P = 3/4, T = 1 / log 3, and nothing is left to err.
    calibration = agreement.calibrate([1, 1, -1, 1], [1, 1, 0, 0])
    assert calibration.temperature == pytest.approx(1 / math.log(3))
    assert calibration.error == pytest.approx(0, abs=1e-9)
    assert [(b.predicted, b.observed, b.n) for b in calibration.bins] == [(pytest.approx(0.75), 0.75, 4)]


def test_calibration_at_its_ends():
    assert agreement.calibrate([1, 2], [1, 1]).temperature == 0
    assert agreement.calibrate([1, 2], [1, 1]).error == 0
    backwards = agreement.calibrate([1, 2], [0, 0])
    assert (backwards.temperature, backwards.error) == (math.inf, 0.5)
    constant = agreement.calibrate([0, 0, 0], [1, 0, 0.5])
    assert math.isnan(constant.temperature)
    assert constant.error == 0
    assert agreement.calibrate([math.nan, math.inf], [1, 0]).bins == ()
