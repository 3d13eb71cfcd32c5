"""Accuracies against counting by hand and against the rules of the published evaluations."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.scored_groups import scored

from sp_rerank.train import accuracy as measure
from sp_rerank.train.preferences import Pair
from sp_rerank.train.scores import ScoredGroup

RANKED = st.integers(2, 6).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(1, 4), min_size=n, max_size=n),
        st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, math.nan]), min_size=n, max_size=n),
    )
)


@given(st.lists(RANKED, min_size=1, max_size=5))
@settings(max_examples=60)
def test_micro_is_image_rewards_count(groups):
    right = compared = 0
    for ranks, scores in groups:
        for i, j in combinations(range(len(ranks)), 2):
            if ranks[i] != ranks[j]:
                compared += 1
                better, worse = (i, j) if ranks[i] < ranks[j] else (j, i)
                right += scores[better] > scores[worse]
    estimate = measure.micro_accuracy([scored(*group) for group in groups])
    assert estimate.n == compared
    assert estimate.value == pytest.approx(right / compared if compared else math.nan, nan_ok=True)


@given(st.lists(st.permutations(range(5)).flatmap(lambda p: st.tuples(st.just(p), RANKED)), min_size=1, max_size=5))
@settings(max_examples=60)
def test_macro_is_hps_v2s_inversion_score(drawn):
    groups = [([*ranks, 2], list(map(float, order[: len(ranks) + 1]))) for order, (ranks, _) in drawn if len(ranks) < 5]
    if not groups:
        return
    expected = []
    for ranks, scores in groups:
        place = [sorted(scores, reverse=True).index(score) for score in scores]
        pairs = list(combinations(range(len(ranks)), 2))
        inverted = sum((place[i] - place[j]) * (ranks[i] - ranks[j]) < 0 for i, j in pairs)
        expected.append(1 - inverted / len(pairs))
    estimate = measure.macro_accuracy([scored(*group) for group in groups])
    assert (estimate.value, estimate.n) == (pytest.approx(np.mean(expected)), len(groups))


def test_accuracies_by_hand():
    groups = [scored([1, 2, 3], [3, 1, 2], "a"), scored([1, 1, 2], [1, 0, 1], "b"), scored([2, 1], [0, math.nan], "c")]
    # a: 2 of 3. b: the tie skipped, 1 > 1 is a predicted tie, 0 > 1 is wrong: 0 of 2. c: 0 of 1.
    assert measure.micro_accuracy(groups).value == pytest.approx(2 / 6)
    # a: one inversion of 3. b: one, and half a one, of 3. c: not comparable counts as inverted.
    assert measure.macro_accuracy(groups).value == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)


def test_margins_by_hand():
    groups = [scored([1, 2, 5], [3, 1, 2]), scored([1, 1, 4], [1, 5, 2])]
    margins = measure.margins(groups)
    assert margins is not None
    # first: 1 apart right, 3 apart wrong, 4 apart right; second: 3 apart wrong and right
    assert [(m.ranks_apart, m.accuracy, m.pairs) for m in margins.table] == [
        (1, 1.0, 1),
        (3, pytest.approx(1 / 3), 3),
        (4, 1.0, 1),
    ]
    assert (margins.similar.value, margins.similar.n) == (1.0, 1)
    assert (margins.clear.value, margins.clear.n) == (0.5, 4)
    assert measure.margins([ScoredGroup("x", (Pair(0, 1, 1),), None, (), np.array([[1.0, 0.0]]))]) is None


@given(
    st.lists(
        st.tuples(st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, math.nan]), st.sampled_from([0.0, 0.5, 1.0])),
        min_size=1,
        max_size=12,
    )
)
@settings(max_examples=100)
def test_the_threshold_of_ties_is_the_best_one(pairs):
    gap, label = np.array(pairs).T

    def points(threshold):
        total = 0.0
        for g, wanted in pairs:
            if not math.isnan(g):
                said = 0.5 if abs(g) <= threshold else float(g > 0)
                total += 1 if said == wanted else 0.5 if (said == 0.5) != (wanted == 0.5) else 0
        return total

    totals = {t: points(t) for t in sorted({0.0, *(abs(g) for g in gap if not math.isnan(g))})}
    assert measure.best_threshold(gap, label) == max(totals, key=lambda t: (totals[t], -t))


def test_the_tie_rule_is_measured_on_other_prompts():
    rng = np.random.default_rng(0)
    groups = []
    for number in range(300):  # people tie where the truth is within .5
        truth = rng.normal(size=2)
        label = 0.5 if abs(truth[0] - truth[1]) < 0.5 else float(truth[0] > truth[1])
        groups.append(ScoredGroup(str(number), (Pair(0, 1, label),), None, (), truth[None] * 2))
    rule = measure.tie_rule(groups)
    assert rule is not None
    assert rule.threshold == pytest.approx(1, abs=0.2)
    assert rule.accuracy.value > 0.95
    assert rule.validation_pairs + rule.accuracy.n == 300
    assert measure.tie_rule([scored([1, 2], [0, 1])]) is None
    assert measure.tie_rule([scored([1, 1], [0, 1])]) is None  # no prompt left to measure on


def test_human_rows_by_hand():
    group = scored([1, 2, 3], [0, 0, 0], annotations=((1.0, 2.0, 3.0), (2.0, 1.0, 3.0), (1.0, 2.0, 2.0)))
    human = measure.human_agreement([group, scored([1, 2], [0, 0])])
    assert human is not None
    # Pairs (0, 1), (0, 2), (1, 2): + - +, + + +, + + tie. Two by two: 1 of 3, 3 of 3, 1 of 1.
    assert (human.single_single.value, human.single_single.n) == (5 / 7, 7)
    # The mean says + + +: 2 of 3, 3 of 3, 2 of 3.
    assert (human.single_averaged.value, human.single_averaged.n) == (7 / 9, 9)
    assert measure.human_agreement([scored([1, 2], [0, 0])]) is None
    divided = measure.human_agreement([group, scored([1, 2], [0, 0], "y", ((1.0, 2.0), (2.0, 1.0)))])
    assert divided is not None  # a mean that ties has no better image to agree on
    assert (divided.single_single.value, divided.single_averaged.n) == (5 / 8, 9)


# The calibration


def test_single_annotators_calibrate_where_they_are_known():
    """One of three people disagrees with the order: P = 2/3 of a gap of 1, whatever the mean order says."""
    group = scored([1, 2], [1, 0], annotations=((1.0, 2.0), (1.0, 2.0), (2.0, 1.0)))
    found = measure.calibration([group])
    assert found.temperature == pytest.approx(1 / math.log(2))
    assert sum(part.n for part in found.bins) == 3
    tied = measure.calibration([scored([1, 2], [1, 0], annotations=((1.0, 2.0), (1.5, 1.5)))])
    assert [(part.observed, part.n) for part in tied.bins] == [(0.75, 2)]
    both = measure.calibration([group, scored([2, 1], [0, 1], "y")])
    assert sum(part.n for part in both.bins) == 4
    assert measure.calibration([scored([1, 2], [1, 0])]).temperature == 0
