"""Pure: how far two opinions agree, how sure that figure is, and what the best of n is worth. Knows no image or file.

The statistics are scipy's. Scores that are not finite are compared with nothing, as in `sp_rerank.stats.ranking`; a
figure that is not defined (one score, all of them equal) is NaN.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

from sp_rerank.stats import ranking

RESAMPLES = 2000
CONFIDENCE = 0.95
BINS = 10
ENOUGH = 0.95  # of the gain from the mean candidate to the best one: where more candidates hardly pay
STEEPEST = 1e12  # of the largest gap over the temperature; above it the temperature counts as 0

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its bootstrap interval.

    Attributes:
        value: NaN where it is not defined.
        low: lower end of the interval; NaN where nothing can be resampled, that is with fewer than two units.
        high: upper end.
        n: of what the figure is a mean or a correlation.
    """

    value: float
    low: float
    high: float
    n: int


def kendall(scores: ArrayLike, others: ArrayLike) -> float:
    """Kendall's tau-b of two scorings of the same things."""
    a, b = _finite(scores, others)
    if not (_varies(a) and _varies(b)):
        return math.nan
    result: Any = stats.kendalltau(a, b)
    return float(result.statistic)


def kendall_interval(scores: ArrayLike, others: ArrayLike, *, seed: int = 0) -> Estimate:
    """`kendall` with its interval from resampling the points; n is the points that are finite on both sides.

    A point that is drawn twice ties with itself, as it does in the resampled list.
    """
    a, b = _finite(scores, others)
    value = kendall(a, b)
    if math.isnan(value):
        return Estimate(value, math.nan, math.nan, len(a))
    # tau-b of a resample is one of the pairs of the points, each counted as often as both its ends were drawn
    drawn = np.random.default_rng(seed).multinomial(len(a), np.full(len(a), 1 / len(a)), size=RESAMPLES).astype(float)
    x, y = (np.sign(one[:, None] - one[None]) for one in (a, b))
    together, of_x, of_y = (((drawn @ of_pair) * drawn).sum(1) for of_pair in (x * y, x * x, y * y))
    with np.errstate(invalid="ignore"):
        low, high = _percentiles(together / np.sqrt(of_x * of_y))
    return Estimate(value, low, high, len(a))


def top_k_overlap(scores: Sequence[float], others: Sequence[float], k: int) -> float:
    """The share of the k best by the one scoring that are among the k best by the other; NaN if there are no k.

    Ties go to the lower index, as in every ranking here.
    """
    if not 0 < k <= len(scores):
        return math.nan
    return len(set(ranking.top(scores, k)) & set(ranking.top(others, k))) / k


def ratio(numerators: ArrayLike, denominators: ArrayLike, *, seed: int = 0) -> Estimate:
    """The sum of numerators over the sum of denominators, resampled by unit.

    A unit is what was drawn at random from the world, such as a prompt with all its pairs: pairs of one prompt hang
    together, and resampling them one by one would make the interval too narrow. With denominators of 1 it is a mean.

    Args:
        numerators: one a unit, such as the pairs in the right order.
        denominators: one a unit, 0 or more, such as the pairs; n is their sum.
        seed: of the resampling.
    """
    above, below = np.asarray(numerators, float), np.asarray(denominators, float)

    def statistic(a: Array, b: Array, axis: int = -1) -> Array:
        with np.errstate(invalid="ignore"):
            return a.sum(axis) / b.sum(axis)

    return _estimate(statistic, above, below, n=int(below.sum()), seed=seed)


def pearson(a: ArrayLike, b: ArrayLike, *, seed: int = 0) -> Estimate:
    """Pearson's correlation of points, resampled by point; n is the points that are finite on both sides."""
    first, second = _finite(a, b)
    return _estimate(_pearson, first, second, n=len(first), seed=seed)


def spearman(a: ArrayLike, b: ArrayLike, *, seed: int = 0) -> Estimate:
    """Spearman's rank correlation, likewise."""
    first, second = _finite(a, b)

    def statistic(x: Array, y: Array, axis: int = -1) -> Array:
        return _pearson(stats.rankdata(x, axis=axis), stats.rankdata(y, axis=axis), axis)

    return _estimate(statistic, first, second, n=len(first), seed=seed)


def _pearson(x: Array, y: Array, axis: int = -1) -> Array:
    if x.shape[axis] < 2:
        return np.full((), math.nan)
    result: Any = stats.pearsonr(x, y, axis=axis)
    return np.asarray(result.statistic)


def _estimate(statistic: Callable[..., Array], a: Array, b: Array, *, n: int, seed: int) -> Estimate:
    """The statistic of paired samples with its percentile interval; undefined resamples are left out."""
    if not len(a):
        return Estimate(math.nan, math.nan, math.nan, n)
    with warnings.catch_warnings(action="ignore", category=stats.DegenerateDataWarning):
        value = float(statistic(a, b))
        if len(a) < 2 or math.isnan(value):
            return Estimate(value, math.nan, math.nan, n)
        drawn = stats.bootstrap(
            (a, b), statistic, paired=True, vectorized=True, n_resamples=RESAMPLES, method="percentile",
            batch=max(1, 2_000_000 // len(a)), rng=np.random.default_rng(seed),
        ).bootstrap_distribution  # fmt: skip
    low, high = _percentiles(drawn)
    return Estimate(value, low, high, n)


def _percentiles(drawn: Array) -> tuple[float, float]:
    """The ends of the interval; undefined resamples are left out."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


# The best of n


def best_of_n(scores: ArrayLike, worth: ArrayLike | None = None) -> Array:
    """What the best of n candidates is expected to score, for n = 1..N, if n of the N are drawn without replacement.

    The candidate of the i-th lowest score is the best of C(i-1, n-1) of the C(N, n) sets. Source: order statistics of
    a finite population; with a second scorer Nakano et al. 2021 (arXiv 2112.09332, appendix I), and Hilton and Gao 2022
    (openai.com/research/measuring-goodharts-law). The weights come one from the other by ratios of at most 1, so that
    no binomial coefficient is ever formed.

    Args:
        scores: of N candidates, by the scorer that picks.
        worth: of the same candidates, to whoever looks at the pick: the scorer itself by default. Candidates that the
            picking scorer finds equal are picked alike.

    Returns:
        (N,) of the candidates that are finite on both sides: the first is their mean, the last the best one's.
    """
    score, value = _finite(scores, scores if worth is None else worth)
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    alike = (np.bincount(place, value) / count)[place] if len(score) else value
    total, n = len(score), np.arange(1, len(score) + 1)
    weight, curve = n / max(total, 1), np.zeros(total)
    for i, one in zip(range(total, 0, -1), alike[np.argsort(score)][::-1], strict=True):
        curve += weight * one
        weight = weight * np.maximum(i - n, 0) / max(i - 1, 1)
    return curve


def enough(curve: ArrayLike, share: float = ENOUGH) -> int:
    """The smallest n whose best candidate has `share` of the gain from the mean to the best of all; 0 of no curve.

    Args:
        curve: of `best_of_n`, of the scorer that picks.
        share: of the gain, in [0, 1]. More candidates than this pay less and less.
    """
    best = np.asarray(curve, float)
    if not len(best):
        return 0
    wanted = min(best[0] + share * (best[-1] - best[0]), best[-1])  # rounding must not ask for more than there is
    return int(np.argmax(best >= wanted)) + 1


# Calibration


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs of about the same predicted probability: what was predicted, and what share of them came out so."""

    predicted: float
    observed: float
    n: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """How well P(the higher score is preferred) = sigmoid(gap / temperature) tells how sure to be.

    Attributes:
        temperature: that makes the labels the most likely, in units of the score; infinite if a higher score says
            nothing or the opposite, 0 if it is always right, NaN where every gap is 0.
        error: expected calibration error, the mean of |predicted - observed| over all pairs, by bin; NaN without pairs.
        bins: of equal width over .5..1; empty ones are left out.
    """

    temperature: float
    error: float
    bins: tuple[Bin, ...]


def calibrate(gaps: ArrayLike, labels: ArrayLike) -> Calibration:
    """Fit the temperature of score gaps and see how the probabilities come out.

    The fit has one parameter and is judged on its own pairs. A pair is read from the side of its higher score, so that
    it does not matter which image is called the first. Expected calibration error as in Guo et al. 2017
    (arXiv 1706.04599), with temperature scaling of the two-way softmax.

    Args:
        gaps: score of the first image minus that of the second, one a pair; pairs that are not finite are left out.
        labels: 1 if the first is preferred, 0 if the second, .5 for a tie.
    """
    gap, label = _finite(gaps, labels)
    if not len(gap):
        return Calibration(math.nan, math.nan, ())
    right = np.where(gap < 0, 1 - label, np.where(gap == 0, 0.5, label))
    temperature = _temperature(np.abs(gap), right)
    predicted = _probabilities(np.abs(gap), temperature)
    place = np.minimum(((predicted - 0.5) * 2 * BINS).astype(int), BINS - 1)
    bins = tuple(
        Bin(float(predicted[inside].mean()), float(right[inside].mean()), int(inside.sum()))
        for inside in (place == number for number in range(BINS))
        if inside.any()
    )
    error = sum(one.n * abs(one.predicted - one.observed) for one in bins) / len(gap)
    return Calibration(temperature, error, bins)


def _temperature(gap: Array, right: Array) -> float:
    """The maximum of the likelihood, which is concave in 1 / temperature."""
    scale = float(gap.max())
    if scale == 0:
        return math.nan
    unit = gap / scale

    def slope(steepness: float) -> float:
        return float(np.sum(unit * (right - special.expit(steepness * unit))))

    if slope(0) <= 0:
        return math.inf
    if slope(STEEPEST) >= 0:
        return 0.0
    steepness: Any = optimize.brentq(slope, 0, STEEPEST, maxiter=1000)
    return scale / float(steepness) if steepness > 0 else math.inf  # a slope that is 0 but for rounding


def _probabilities(gap: Array, temperature: float) -> Array:
    if temperature == 0:
        return np.where(gap > 0, 1.0, 0.5)
    return np.full(len(gap), 0.5) if math.isnan(temperature) else special.expit(gap / temperature)


def _finite(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    """The places where both are finite."""
    first, second = np.asarray(a, float), np.asarray(b, float)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"expected two lists of one length, got shapes {first.shape} and {second.shape}")
    both = np.isfinite(first) & np.isfinite(second)
    return first[both], second[both]


def _varies(a: Array) -> bool:
    return len(a) > 1 and bool(np.any(a != a[0]))
