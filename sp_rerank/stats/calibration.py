"""Pure: how sure a gap between two scores makes one. Knows pairs of scores and what was preferred, no scorer or file.

P(a preferred to b) = sigmoid((S(a) - S(b)) / temperature).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

import numpy as np
from numpy.typing import ArrayLike

from sp_rerank.stats.agreement import Array, finite_pairs
from sp_rerank.stats.lazy_scipy import scipy

BINS = 10
STEEPEST = 1e12  # of the largest gap over the temperature; above it the temperature counts as 0

TOLD_APART = 2 / 3
"""The probability from which on two images count as told apart: of three people, two would choose the better one."""


def preferred(gap: float, temperature: float) -> float:
    """P(the first is preferred), given its score minus that of the second; temperature 0: the higher score always."""
    if temperature == 0:
        return 0.5 if gap == 0 else float(gap > 0)
    return 0.5 * (1 + math.tanh(gap / temperature / 2))


def margin(temperature: float) -> float:
    """The gap below which two scores are not told apart: P < TOLD_APART; in units of the score."""
    return temperature * math.log(TOLD_APART / (1 - TOLD_APART))


def margin_of_sigmas(sigmas: Sequence[float]) -> float:
    """The gap below which two scores are not told apart where each is known up to a normal error: P < TOLD_APART.

    P(a preferred to b) = Phi(gap / sqrt(sigma(a)^2 + sigma(b)^2)), as HPSv3 is trained (Ma et al. 2025, arXiv
    2508.03789); one margin for all, of their mean square.

    Args:
        sigmas: Standard deviations in units of the score; those that are not finite are left out.
    """
    squares = [sigma**2 for sigma in sigmas if math.isfinite(sigma)]
    return NormalDist().inv_cdf(TOLD_APART) * math.sqrt(2 * fmean(squares)) if squares else 0.0


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
        bins: Bins of equal width over 0.5 to 1; empty ones are left out.
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
    gap, label = finite_pairs(gaps, labels)
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
    error = sum(part.n * abs(part.predicted - part.observed) for part in bins) / len(gap)
    return Calibration(temperature, error, bins)


def _temperature(gap: Array, right: Array) -> float:
    """The maximum of the likelihood, which is concave in 1 / temperature."""
    scale = float(gap.max())
    if scale == 0:
        return math.nan
    unit = gap / scale

    def slope(steepness: float) -> float:
        return float(np.sum(unit * (right - scipy("special").expit(steepness * unit))))

    if slope(0) <= 0:
        return math.inf
    if slope(STEEPEST) >= 0:
        return 0.0
    steepness = float(scipy("optimize").brentq(slope, 0, STEEPEST, maxiter=1000))
    return scale / steepness if steepness > 0 else math.inf  # a slope that is 0 but for rounding


def _probabilities(gap: Array, temperature: float) -> Array:
    if temperature == 0:
        return np.where(gap > 0, 1.0, 0.5)
    return np.full(len(gap), 0.5) if math.isnan(temperature) else scipy("special").expit(gap / temperature)
