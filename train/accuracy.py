"""How often scores order images as people do: accuracy, margins, ties, human rows, calibration.

Knows scored groups. Knows nothing of images, scorers or tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sp_rerank.stats import agreement
from sp_rerank.stats.agreement import Estimate
from sp_rerank.stats.calibration import Calibration, calibrate
from sp_rerank.train.preferences import split_groups
from sp_rerank.train.scores import Array, ScoredGroup

CLEAR = 3
"""Ranks apart from which on two images differ clearly; 1 apart they are of similar quality."""

VALIDATION = 0.2
"""Share of the prompts on which the threshold of predicted ties is chosen."""


@dataclass(frozen=True, slots=True)
class Margin:
    """Accuracy on the strict pairs whose ranks are so far apart."""

    ranks_apart: int
    accuracy: float
    pairs: int


@dataclass(frozen=True, slots=True)
class Margins:
    """Micro accuracy by how much better people found the better image.

    Attributes:
        table: Accuracy by the difference of the ranks.
        similar: Accuracy on pairs at most 1 rank apart.
        clear: Accuracy on pairs at least CLEAR ranks apart.
    """

    table: tuple[Margin, ...]
    similar: Estimate
    clear: Estimate


@dataclass(frozen=True, slots=True)
class TieRule:
    """Accuracy by Pick-a-Pic's rule: images within a threshold are predicted to tie.

    Attributes:
        threshold: of |S_first - S_second|, chosen on the validation prompts. Pick-a-Pic's is one of |p0 - p1|, which
            rises with the gap and so predicts the same ties.
        accuracy: Accuracy on the other prompts.
        validation_pairs: Number of pairs on which the threshold was chosen.
    """

    threshold: float
    accuracy: Estimate
    validation_pairs: int


@dataclass(frozen=True, slots=True)
class Human:
    """How often people agree: of two annotators, and of one with the mean of all ranks of the group."""

    single_single: Estimate
    single_averaged: Estimate


def micro_accuracy(scored: Sequence[ScoredGroup], *, view: int = 0, seed: int = 0) -> Estimate:
    """The share of all strictly ordered pairs, of all prompts together, whose better image scores strictly higher.

    As `acc` of THUDM/ImageReward (test.py): tied labels are skipped, equal scores are wrong.
    """
    compared = [compare_pairs(group, view) for group in scored]
    return agreement.ratio([c.right.sum() for c in compared], [c.strict.sum() for c in compared], seed=seed)


def macro_accuracy(scored: Sequence[ScoredGroup], *, view: int = 0, seed: int = 0) -> Estimate:
    """The mean over prompts of 1 - inversions/pairs, as `inversion_score` of tgxs002/HPSv2 (training/train.py)."""
    compared = [compare_pairs(group, view) for group in scored]
    inverted = [(c.strict & ~c.right & ~c.equal).sum() + 0.5 * (c.strict & c.equal).sum() for c in compared]
    pairs = np.array([len(c.label) for c in compared])
    return agreement.ratio(1 - np.array(inverted) / pairs, np.ones(len(pairs)), seed=seed)


def margins(scored: Sequence[ScoredGroup], *, seed: int = 0) -> Margins | None:
    """Micro accuracy by the difference of the ranks, rounded; None where no images are ranked."""
    ranked = [compare_pairs(group) for group in scored if group.ranks is not None]
    if not ranked:
        return None

    def within(low: float, high: float) -> Estimate:
        inside = [c.strict & (c.apart >= low) & (c.apart <= high) for c in ranked]
        right = [(c.right & chosen).sum() for c, chosen in zip(ranked, inside, strict=True)]
        return agreement.ratio(right, [chosen.sum() for chosen in inside], seed=seed)

    apart, strict, right = (np.concatenate([getattr(c, name) for c in ranked]) for name in ("apart", "strict", "right"))
    table = tuple(
        Margin(int(value), float(right[chosen].mean()), int(chosen.sum()))
        for value in np.unique(apart[strict])
        for chosen in [strict & (apart == value)]
    )
    return Margins(table, similar=within(0, 1), clear=within(CLEAR, math.inf))


def tie_rule(scored: Sequence[ScoredGroup], *, seed: int = 0) -> TieRule | None:
    """Accuracy where a tie can be predicted: half a point if exactly one of label and prediction is a tie.

    Kirstain et al. 2023 (arXiv 2305.01569): the threshold is the best one on a validation part, here the prompts that
    a hash puts there.
    """
    compared = {id(group): compare_pairs(group) for group in scored}
    if not any((c.label == 0.5).any() for c in compared.values()):
        return None
    chosen_on, measured_on = split_groups(scored, (VALIDATION, 1 - VALIDATION), seed)
    if not chosen_on or not measured_on:
        return None
    gap, label = (
        np.concatenate([getattr(compared[id(group)], name) for group in chosen_on]) for name in ("gap", "label")
    )
    threshold = best_threshold(gap, label)
    points = [_points(compared[id(g)].gap, compared[id(g)].label, threshold).sum() for g in measured_on]
    return TieRule(threshold, agreement.ratio(points, [len(g.pairs) for g in measured_on], seed=seed), len(gap))


def best_threshold(gap: Array, label: Array) -> float:
    """The smallest of the thresholds that give the most points, out of 0 and the gaps themselves.

    Args:
        gap: score of the first image minus that of the second; pairs with NaN never get a point.
        label: 1, 0 or .5.
    """
    size = np.abs(gap[~np.isnan(gap)])
    gain = _points(gap, label, math.inf)[~np.isnan(gap)] - _points(gap, label, -1)[~np.isnan(gap)]
    candidates = np.unique([0, *size])
    order = np.argsort(size)
    total = np.concatenate([[0], np.cumsum(gain[order])])
    return float(candidates[np.argmax(total[np.searchsorted(size[order], candidates, side="right")])])


def _points(gap: Array, label: Array, threshold: float) -> Array:
    tied, predicted = label == 0.5, np.abs(gap) <= threshold
    agreed = np.where(label == 1, gap > 0, gap < 0) | (tied & predicted)
    return np.where(np.isnan(gap), 0, np.where(tied != predicted, 0.5, agreed))


def human_agreement(scored: Sequence[ScoredGroup], *, seed: int = 0) -> Human | None:
    """How often people agree with people; None where single annotators are not known.

    Pairs that either side finds equal are left out between two annotators; against the mean rank of all annotators of
    the group, the one included, a pair that only the one finds equal is wrong. How ties were counted in the published
    rows is not stated: our reading.
    """
    groups = [_annotators(group) for group in scored if len(group.annotations) > 1]
    if not groups:
        return None
    return Human(*(agreement.ratio(*zip(*(counts[i] for counts in groups), strict=True), seed=seed) for i in (0, 1)))


def _annotators(group: ScoredGroup) -> tuple[tuple[int, int], tuple[int, int]]:
    """Agreements and comparisons: of two annotators, of one with the mean."""
    first, second, _ = _columns(group)
    ranks = np.array(group.annotations)
    signs = np.sign(ranks[:, second] - ranks[:, first])
    ahead, behind = (signs > 0).sum(0), (signs < 0).sum(0)
    agreed = (ahead * (ahead - 1) + behind * (behind - 1)) // 2
    compared = (ahead + behind) * (ahead + behind - 1) // 2
    total = ranks.sum(0)
    mean = np.sign(total[second] - total[first])
    with_mean = (signs == mean)[:, mean != 0]
    return (int(agreed.sum()), int(compared.sum())), (int(with_mean.sum()), with_mean.size)


def calibration(scored: Sequence[ScoredGroup]) -> Calibration:
    """Of all pairs, ties as half a preference for each side; see `sp_rerank.stats.calibration.calibrate`.

    Where single annotators are known, each of their choices counts, not the order that was made of them: the question
    is how likely one person is to agree.
    """
    gaps, labels = zip(*(_choices(group) for group in scored), strict=True)
    return calibrate(np.concatenate(gaps), np.concatenate(labels))


def _choices(group: ScoredGroup) -> tuple[Array, Array]:
    """Score gap and label of each choice: of the group's pairs, or of every annotator's."""
    gap, label = compare_pairs(group).gap, compare_pairs(group).label
    if not group.annotations:
        return gap, label
    first, second, _ = _columns(group)
    ranks = np.array(group.annotations)
    chosen = (np.sign(ranks[:, second] - ranks[:, first]) + 1) / 2  # a lower rank is better
    return np.tile(gap, len(ranks)), chosen.ravel()


@dataclass(frozen=True, slots=True)
class ComparedPairs:
    """What a scorer makes of a group's pairs, (pairs,) each.

    Attributes:
        gap: score of the first less that of the second.
        label: as in `Pair`.
        apart: difference of the ranks, NaN where there are none.
        strict: Whether people preferred one.
        right: Whether that one scores strictly higher.
        equal: Whether the scores are equal.
    """

    gap: Array
    label: Array
    apart: Array
    strict: NDArray[np.bool_]
    right: NDArray[np.bool_]
    equal: NDArray[np.bool_]


def compare_pairs(group: ScoredGroup, view: int = 0) -> ComparedPairs:
    """Compare the scores of one view with people."""
    first, second, label = _columns(group)
    gap = group.scores[view][first] - group.scores[view][second]
    ranks = np.array(group.ranks or [math.nan] * group.scores.shape[1])
    right = np.where(label == 1, gap > 0, gap < 0) & (label != 0.5)
    return ComparedPairs(gap, label, np.abs(ranks[first] - ranks[second]).round(), label != 0.5, right, gap == 0)


def _columns(group: ScoredGroup) -> tuple[NDArray[np.int_], NDArray[np.int_], Array]:
    first, second, label = zip(*((pair.first, pair.second, pair.label) for pair in group.pairs), strict=True)
    return np.array(first), np.array(second), np.array(label, float)
