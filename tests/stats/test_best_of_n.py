"""The best of n, against every set of n and exact fractions."""

import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.scorings import FINITE, paired, usable

from sp_rerank.stats import best_of_n


def best_of_every_set(points, n):
    """The mean value of the best of each set of n, a tie decided by an even draw."""
    bests = []
    for chosen in combinations(points, n):
        top = max(score for score, _ in chosen)
        tied = [value for score, value in chosen if score == top]
        bests.append(sum(tied) / len(tied))
    return sum(bests) / len(bests)


@given(paired())
@settings(max_examples=60)
def test_the_best_of_n_is_the_mean_over_all_sets_of_n(scores):
    first, second = scores
    own = [(s, s) for s in first if math.isfinite(s)]
    for found, points in [
        (best_of_n.expected_best(first), own),
        (best_of_n.expected_best(first, second), usable(*scores)),
    ]:
        assert len(found) == len(points)
        assert found == pytest.approx([best_of_every_set(points, n + 1) for n in range(len(points))])


def test_the_best_of_n_of_a_thousand_is_exact():
    scores = np.random.default_rng(0).normal(loc=1e3, size=1000)
    found = best_of_n.expected_best(scores)
    ordered = [Fraction(float(score)) for score in np.sort(scores)]
    for n in (1, 2, 10, 500, 999, 1000):
        sets = sum(score * math.comb(i, n - 1) for i, score in enumerate(ordered))
        assert found[n - 1] == pytest.approx(float(sets / math.comb(1000, n)), rel=1e-13)
    assert np.all(np.diff(found) > 0)


def test_the_best_of_n_at_its_ends():
    assert best_of_n.expected_best([]).tolist() == []
    assert best_of_n.expected_best([0.5]).tolist() == [0.5]
    assert best_of_n.expected_best([math.nan, 2.0, math.inf]).tolist() == [2.0]
    assert best_of_n.expected_best([1.0, 1.0, 1.0], [0.0, 3.0, 6.0]) == pytest.approx([
        3,
        3,
        3,
    ])  # no better than chance
    worse = best_of_n.expected_best([1.0, 2.0, 3.0], [3.0, 4.0, 0.0])
    assert worse.argmax() == 0  # to the other scorer, every further candidate makes the pick worse
    with pytest.raises(ValueError, match="one length"):
        best_of_n.expected_best([1.0], [1.0, 2.0])


@given(st.lists(FINITE, max_size=9), st.sampled_from([0.0, 0.5, 0.95, 1.0]))
@example([0.5, -0.75, -1.5], 1.0)
def test_the_n_for_a_gain_is_the_first_that_reaches_the_share(scores, share):
    curve = best_of_n.expected_best(scores)
    n = best_of_n.n_for_gain(curve, share)
    if not scores:
        assert n == 0
        return
    wanted = min(curve[0] + share * (curve[-1] - curve[0]), curve[-1])
    assert curve[n - 1] >= wanted
    assert n == 1 or curve[n - 2] < wanted
