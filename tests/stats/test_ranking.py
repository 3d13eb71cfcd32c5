"""Properties of an order over scores of every kind."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sp_rerank.stats.ranking import finite, mean_ranks, order, ordinal, short_names, tie_groups, top

# Few values, so that ties are common, and every kind of float.
SCORE = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, math.nan, math.inf, -math.inf]) | st.floats()
FINITE = st.integers(-20, 20).map(lambda tenths: tenths / 10)


@st.composite
def scored(draw):
    scores = draw(st.lists(SCORE, max_size=12))
    excluded = draw(st.none() | st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    return scores, excluded


def usable(scores, excluded=None):
    out = excluded or [False] * len(scores)
    return [index for index, score in enumerate(scores) if math.isfinite(score) and not out[index]]


@given(scored())
def test_order_is_the_usable_ones_by_score_then_the_rest_by_index(given_scores):
    scores, excluded = given_scores
    ranked = order(scores, excluded)
    good = usable(scores, excluded)
    assert sorted(ranked) == list(range(len(scores)))
    assert set(ranked[: len(good)]) == set(good)
    for better, worse in pairwise(ranked[: len(good)]):
        assert scores[better] > scores[worse] or (scores[better] == scores[worse] and better < worse)
    assert ranked[len(good) :] == sorted(ranked[len(good) :])


@given(st.lists(SCORE, max_size=12), st.integers(0, 40))
def test_top_never_holds_an_unusable_one(scores, k):
    best = top(scores, k)
    good = usable(scores)
    assert set(best) <= set(good)
    assert len(best) == min(k, len(good))
    assert best == order(scores)[: len(best)]


@given(st.lists(FINITE, min_size=1), st.integers(0, 1000))
def test_a_better_score_never_ranks_lower(scores, which):
    index = which % len(scores)
    raised = [*scores[:index], scores[index] + 1, *scores[index + 1 :]]
    assert order(raised).index(index) <= order(scores).index(index)


def test_exclusion_of_another_length_is_refused():
    with pytest.raises(ValueError):
        order([1.0, 2.0], [True])


@given(st.lists(SCORE, max_size=12), st.sampled_from([0.0, 0.1, 1.0]))
def test_tie_groups_reach_as_far_as_the_margin(scores, margin):
    ordered = [scores[index] for index in order(scores)]
    groups = tie_groups(ordered, margin)
    first = {group: ordered[groups.index(group)] for group in groups}
    assert list(first) == list(range(1, len(first) + 1))
    assert groups == sorted(groups)
    for score, group in zip(ordered, groups, strict=True):
        if math.isfinite(score):
            assert first[group] - score <= margin
            assert group == 1 or first[group - 1] - score > margin
        else:
            assert groups.count(group) == 1


def test_tie_groups_of_a_plain_order():
    assert tie_groups([3.0, 2.9, 2.8, 1.0, 1.0], margin=0.15) == [1, 1, 2, 3, 3]


@given(st.integers(0, 8).flatmap(lambda n: st.lists(st.lists(SCORE, min_size=n, max_size=n), min_size=1, max_size=3)))
def test_mean_ranks_are_those_of_scipy_over_the_candidates_that_all_have_scored(scorings):
    scores = np.array(scorings)
    usable = np.isfinite(scores).all(axis=0)
    ranks = stats.rankdata(-scores[:, usable], axis=1).mean(axis=0)
    found = np.array(mean_ranks(scorings))
    assert found[usable] == pytest.approx(ranks)
    assert np.isnan(found[~usable]).all()


def test_mean_ranks_know_no_scale():
    assert mean_ranks([[0.1, 0.3, 0.2], [100.0, 300.0, 900.0]]) == [3.0, 1.5, 1.5]
    assert mean_ranks([[1.0, 1.0, 0.0]]) == [1.5, 1.5, 3.0]
    with pytest.raises(ValueError):
        mean_ranks([[1.0], [1.0, 2.0]])


def test_what_json_cannot_hold_is_none():
    assert [finite(score) for score in (0.0, -1.5, math.nan, math.inf, -math.inf, None)] == [0.0, -1.5, *[None] * 4]


def test_ordinals():
    assert [ordinal(number) for number in (1, 2, 3, 4, 11, 12, 13, 21, 102, 111, 113)] == [
        "1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "102nd", "111th", "113th",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("scorers", "labels"),
    [
        (["sp@1", "sp@2", "clip@3"], ["sp@1", "sp@2", "clip"]),
        (["sp@0123456789ab", "sp@9876543210ab"], ["sp@01234567", "sp@98765432"]),
        (["sp@0123456789ab", "sp@0123456789cd"], ["sp@0123456789ab", "sp@0123456789cd"]),
        (["sp", "sp@1", "sp@1"], ["sp", "sp@1"]),
        ([], []),
    ],
)
def test_short_names_tell_scorers_apart(scorers, labels):
    assert list(short_names(scorers).values()) == labels
