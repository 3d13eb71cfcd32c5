"""An order out of few comparisons: no pair twice, few enough, and the right order of things that differ."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sp_rerank.stats.agreement import kendall
from sp_rerank.stats.pairing import from_pairs, rounds_for


def sure(values):
    return lambda pairs: [1 / (1 + math.exp(values[b] - values[a])) for a, b in pairs]


@given(st.integers(0, 40), st.integers(0, 3))
def test_no_pair_is_asked_twice_and_nothing_with_itself(count: int, seed: int):
    found = from_pairs(count, sure(np.random.default_rng(seed).normal(size=count)), seed=seed)
    assert len({frozenset(pair) for pair in found.pairs}) == len(found.pairs)
    assert all(a != b for a, b in found.pairs)
    assert len(found.pairs) <= rounds_for(count) * (count // 2)
    assert len(found.mean) == len(found.sigma) == count


@pytest.mark.parametrize("count", [2, 3, 5, 30, 100])
def test_the_order_is_that_of_the_utilities(count: int):
    values = 2 * np.random.default_rng(count).permutation(count)
    found = from_pairs(count, sure(values))
    assert np.argsort(found.mean).tolist()[-1] == int(np.argmax(values))
    assert kendall(found.mean, values) > 0.9
    assert abs(sum(found.mean)) < 1e-6


def test_few_things_are_compared_all():
    assert len(from_pairs(4, lambda pairs: [0.5] * len(pairs)).pairs) == 6


def test_ties_leave_all_alike():
    found = from_pairs(9, lambda pairs: [0.5] * len(pairs))
    assert max(map(abs, found.mean)) < 1e-9 and min(found.sigma) > 0.5


def test_what_was_never_asked_is_known_no_better_than_before():
    assert (from_pairs(1, sure([0])).mean, from_pairs(0, sure([])).mean) == ([0.0], [])


def test_an_answer_too_few_is_an_error():
    with pytest.raises(ValueError, match="expected an answer for each of 2 pairs, got 1"):
        from_pairs(4, lambda pairs: [0.5])
