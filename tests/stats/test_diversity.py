"""Maximal marginal relevance: by hand, and against its definition."""

import math
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sp_rerank.stats import ranking
from sp_rerank.stats.diversity import copies, diverse, score_cost

SCORE = st.sampled_from([0.0, 0.25, 0.5, 1.0, math.nan, math.inf]) | st.floats(-10, 10)


@st.composite
def embedded(draw):
    n = draw(st.integers(0, 8))
    scores = draw(st.lists(SCORE, min_size=n, max_size=n))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return scores, rng.normal(size=(n, 3))


def by_definition(scores, embeddings, k, weight):
    """The picks one by one, each by a search through all candidates."""
    usable = [i for i in range(len(scores)) if math.isfinite(scores[i])]
    cosine = {
        (i, j): round(embeddings[i] @ embeddings[j] / np.linalg.norm(embeddings[i]) / np.linalg.norm(embeddings[j]), 6)
        for i in usable
        for j in usable
    }
    pairs = [value for (i, j), value in cosine.items() if i < j]
    mean = fmean([scores[i] for i in usable] or [0.0])
    best = max((scores[i] for i in usable), default=0.0)

    def likeness(i, j):
        return sum((value < cosine[i, j]) + (value == cosine[i, j]) / 2 for value in pairs) / len(pairs)

    def marginal(i, picked):
        relevance = (scores[i] - mean) / (best - mean) if best > mean else 0.0
        return weight * relevance - (1 - weight) * max((likeness(i, j) for j in picked), default=0.0)

    picked = ranking.top(scores, min(k, 1))
    while picked and len(picked) < min(k, len(usable)):
        left = [i for i in usable if i not in picked]
        left = [i for i in left if all(cosine[i, j] < 0.99 for j in picked)] or left
        values = [marginal(i, picked) for i in left]
        picked.append(left[int(np.argmax(values))])
    return picked


@given(embedded(), st.integers(0, 10), st.sampled_from([0.3, 0.7]))
def test_the_picks_are_those_of_the_definition(candidates, k, weight):
    scores, embeddings = candidates
    found = diverse(scores, embeddings, k, score_counts=weight)
    if len({s for s in scores if math.isfinite(s)}) == sum(map(math.isfinite, scores)):  # else equals may swap
        assert found == by_definition(scores, embeddings, k, weight)
    assert len(set(found)) == len(found) == min(k, sum(map(math.isfinite, scores)))
    assert found[:1] == ranking.top(scores, min(k, 1))


@given(embedded(), st.integers(0, 10))
def test_with_the_score_alone_it_is_the_plain_top_k(candidates, k):
    scores, embeddings = candidates
    assert diverse(scores, embeddings, k, score_counts=1.0) == ranking.top(scores, k)


@given(embedded(), st.integers(1, 5))
def test_scales_do_not_matter_and_a_choice_never_gains(candidates, k):
    scores, embeddings = candidates
    found = diverse(scores, embeddings, k)
    doubled = [2 * score for score in scores]
    assert diverse(doubled, 4 * embeddings, k) == found
    if found:
        assert score_cost(scores, found) >= -1e-12


def test_a_near_copy_stands_back():
    scores = [1.0, 0.99, 0.9, 0.0]
    embeddings = [[1, 0], [1, 0.01], [0, 1], [-1, 0.2]]
    assert ranking.top(scores, 2) == [0, 1]
    assert diverse(scores, embeddings, 2) == [0, 2]
    assert score_cost(scores, [0, 2]) == pytest.approx(0.045)
    assert math.isnan(score_cost(scores, []))


def test_equal_scores_and_equal_images_give_the_first_ones():
    assert diverse([1.0] * 4, np.ones((4, 2)), 3) == [0, 1, 2]
    assert diverse([1.0, 2.0], np.zeros((2, 2)), 2) == [1, 0]
    assert diverse([1.0, 2.0], [[1.0, 0.0], [math.nan, 0.0]], 2) == [0]  # an image that is not finite has no likeness


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="an embedding for each of 2 scores"):
        diverse([1.0, 2.0], [[1.0]], 1)
    with pytest.raises(ValueError, match="expected 0 to 1"):
        diverse([1.0], [[1.0]], 1, score_counts=2)


def test_of_three_copies_and_another_the_other_is_chosen():
    embeddings = [[1, 0], [1, 0.001], [1, 0], [0, 1]]
    assert diverse([0.3, 0.29, 0.3, 0.1], embeddings, 2) == [0, 3]
    assert diverse([0.3, 0.29, 0.3, 0.1], embeddings, 3) == [0, 3, 2]
    assert copies(embeddings) == 2
    assert copies([embeddings[i] for i in (0, 3)]) == 0
    assert copies([]) == 0
