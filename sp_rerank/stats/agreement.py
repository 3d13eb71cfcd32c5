"""Pure: how far two scorings agree, and how sure that figure is. Knows no image or file.

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

from sp_rerank.stats import ranking
from sp_rerank.stats.lazy_scipy import scipy

RESAMPLES = 2000
CONFIDENCE = 0.95

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
    a, b = finite_pairs(scores, others)
    if not (_varies(a) and _varies(b)):
        return math.nan
    result: Any = scipy("stats").kendalltau(a, b)
    return float(result.statistic)


def kendall_interval(scores: ArrayLike, others: ArrayLike, *, seed: int = 0) -> Estimate:
    """`kendall` with its interval from resampling the points; n is the points that are finite on both sides.

    A point that is drawn twice ties with itself, as it does in the resampled list.
    """
    a, b = finite_pairs(scores, others)
    value = kendall(a, b)
    if math.isnan(value):
        return Estimate(value, math.nan, math.nan, len(a))
    # tau-b of a resample is one of the pairs of the points, each counted as often as both its ends were drawn
    drawn = np.random.default_rng(seed).multinomial(len(a), np.full(len(a), 1 / len(a)), size=RESAMPLES).astype(float)
    x, y = (np.sign(values[:, None] - values[None]) for values in (a, b))
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
        seed: Seed of the resampling.
    """
    above, below = np.asarray(numerators, float), np.asarray(denominators, float)

    def statistic(a: Array, b: Array, axis: int = -1) -> Array:
        with np.errstate(invalid="ignore"):
            return a.sum(axis) / b.sum(axis)

    return _estimate(statistic, above, below, n=int(below.sum()), seed=seed)


def pearson(a: ArrayLike, b: ArrayLike, *, seed: int = 0) -> Estimate:
    """Pearson's correlation of points, resampled by point; n is the points that are finite on both sides."""
    first, second = finite_pairs(a, b)
    return _estimate(_pearson, first, second, n=len(first), seed=seed)


def spearman(a: ArrayLike, b: ArrayLike, *, seed: int = 0) -> Estimate:
    """Spearman's rank correlation, resampled by point; n is the points that are finite on both sides."""
    first, second = finite_pairs(a, b)

    def statistic(x: Array, y: Array, axis: int = -1) -> Array:
        return _pearson(scipy("stats").rankdata(x, axis=axis), scipy("stats").rankdata(y, axis=axis), axis)

    return _estimate(statistic, first, second, n=len(first), seed=seed)


def _pearson(x: Array, y: Array, axis: int = -1) -> Array:
    if x.shape[axis] < 2:
        return np.full((), math.nan)
    result: Any = scipy("stats").pearsonr(x, y, axis=axis)
    return np.asarray(result.statistic)


def _estimate(statistic: Callable[..., Array], a: Array, b: Array, *, n: int, seed: int) -> Estimate:
    """The statistic of paired samples with its percentile interval; undefined resamples are left out."""
    if not len(a):
        return Estimate(math.nan, math.nan, math.nan, n)
    with warnings.catch_warnings(action="ignore", category=scipy("stats").DegenerateDataWarning):
        value = float(statistic(a, b))
        if len(a) < 2 or math.isnan(value):
            return Estimate(value, math.nan, math.nan, n)
        drawn = scipy("stats").bootstrap(
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


def finite_pairs(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    """The places where both are finite, of two lists of one length.

    Raises:
        ValueError: if they are no such lists.
    """
    first, second = np.asarray(a, float), np.asarray(b, float)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"expected two lists of one length, got shapes {first.shape} and {second.shape}")
    both = np.isfinite(first) & np.isfinite(second)
    return first[both], second[both]


def _varies(a: Array) -> bool:
    return len(a) > 1 and bool(np.any(a != a[0]))
