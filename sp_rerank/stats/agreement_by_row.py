"""Pure: how far two scorings of many prompts agree, prompt by prompt, all rows of a matrix at once. Knows no file.

The figures are those of `sp_rerank.stats.agreement` without an interval for each prompt: of 10,000 the mean is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sp_rerank.stats.agreement import Array
from sp_rerank.stats.lazy_scipy import scipy

PAIRS_AT_ONCE = 2_000_000
"""Pairs of candidates in memory."""


@dataclass(frozen=True, slots=True)
class RowAgreement:
    """Two scorings of m prompts, (m,) each; NaN where a figure is not defined.

    Attributes:
        kendall: Kendall's tau-b.
        spearman: Spearman's rank correlation.
        overlap: By k, the share of the one's k best that are among the other's.
        rank_by: The rank of the first one's pick by the second, and the other way round.
        normalized_gain: How far the first one's pick goes from the second's mean candidate (0) to its best (1), and the
            other way round.
    """

    kendall: Array
    spearman: Array
    overlap: dict[int, Array]
    rank_by: tuple[Array, Array]
    normalized_gain: tuple[Array, Array]


def agreement_by_row(a: Array, b: Array, ks: Sequence[int]) -> RowAgreement:
    """Compare two scorings row by row.

    Args:
        a: (m, n) scores of n candidates each of m prompts, finite.
        b: (m, n) of the same candidates by the other scorer, finite.
        ks: The k of the overlap; those above n are NaN.
    """
    return RowAgreement(
        kendall=_kendall(a, b),
        spearman=_spearman(a, b),
        overlap={k: _overlap(a, b, k) for k in ks},
        rank_by=(_rank(a, b), _rank(b, a)),
        normalized_gain=(_gain(a, b), _gain(b, a)),
    )


def _kendall(a: Array, b: Array) -> Array:
    m, n = a.shape
    found = np.full(m, np.nan)
    rows = max(1, PAIRS_AT_ONCE // (n * n))
    for start in range(0, m, rows):
        x, y = (np.sign(s[start : start + rows, :, None] - s[start : start + rows, None, :]) for s in (a, b))
        with np.errstate(invalid="ignore"):
            of_each = np.sqrt((x * x).sum((1, 2)) * (y * y).sum((1, 2)))
            found[start : start + rows] = (x * y).sum((1, 2)) / of_each
    return found


def _spearman(a: Array, b: Array) -> Array:
    x, y = (scipy("stats").rankdata(scores, axis=1) for scores in (a, b))
    x, y = (ranks - ranks.mean(1, keepdims=True) for ranks in (x, y))
    with np.errstate(invalid="ignore"):
        return (x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1))


def _overlap(a: Array, b: Array, k: int) -> Array:
    if k > a.shape[1]:
        return np.full(len(a), np.nan)
    chosen = [np.zeros(a.shape, bool) for _ in range(2)]
    for mask, scores in zip(chosen, (a, b), strict=True):
        np.put_along_axis(mask, np.argsort(-scores, axis=1, kind="stable")[:, :k], True, axis=1)
    return (chosen[0] & chosen[1]).sum(1) / k


def _rank(a: Array, b: Array) -> Array:
    """The rank of the first scorer's pick by the second; ties go to the lower index."""
    pick: NDArray[np.intp] = np.argmax(a, axis=1, keepdims=True)
    value: Array = np.take_along_axis(b, pick, axis=1)
    places: NDArray[np.intp] = np.arange(a.shape[1], dtype=np.intp)
    before: NDArray[np.bool_] = np.less(places, pick)
    ahead: NDArray[np.intp] = np.count_nonzero((b > value) | ((b == value) & before), axis=1)
    return 1.0 + ahead.astype(np.float64)


def _gain(a: Array, b: Array) -> Array:
    """The value by b of a's pick, of candidates that tie their mean, from b's mean to its best."""
    best = a == a.max(1, keepdims=True)
    value, mean = (b * best).sum(1) / best.sum(1), b.mean(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(b.max(1) > b.min(1), (value - mean) / (b.max(1) - mean), np.nan)
