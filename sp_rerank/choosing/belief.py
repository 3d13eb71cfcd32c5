"""What is believed of one person's liking of the images of one prompt, by a scorer and by the person's answers.

Utilities are in units of log-odds: P(a preferred to b) = sigmoid(u(a) - u(b)). Before any answer an image's utility is
drawn around what the scorer says of it. How much a person's likings spread, and how far the scorer's order is the
person's, is not known beforehand: several values of each are kept side by side, weighted by how well they explain the
answers (the evidence). Knows numbers; knows no image, file or question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from sp_rerank.stats.bradley_terry import posterior

Array = NDArray[np.float64]

SPREADS = (1.0, 2.0, 4.0)
"""Standard deviations of a person's utilities within a prompt; with 2 two answers to a pair agree in 76 of 100."""

CORRELATIONS = (0.0, 0.3, 0.6, 0.85)
"""Of the scorer's scores with the person's utilities."""

LEAST = 0.002  # weight below which a pair of these is left out
DRAWS = 1000
RIVALS = 40  # images behind the first places that could move up by one answer
HALVINGS = 30
FIRST = 4
"""The first places whose order is settled when no further answer would change which images hold them."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One answer about the images of a prompt.

    Attributes:
        first: Index of an image.
        second: Index of the other one; None compares with a middling image of the prompt, whose utility is 0.
        label: 1 if the first is better, 0 if the second, .5 if neither is; of several answers their mean.
        weight: How many answers it counts for.
    """

    first: int
    second: int | None
    label: float
    weight: float = 1.0


class Tally:
    """Comparisons with those of the same two images together: what they say is the same, whatever their number."""

    def __init__(self) -> None:
        self._sums: dict[tuple[int, int | None], list[float]] = {}

    def add(self, comparisons: Sequence[Comparison]) -> None:
        """Take more comparisons."""
        for new in comparisons:
            turned = new.second is not None and new.second < new.first
            key = (new.second, new.first) if turned and new.second is not None else (new.first, new.second)
            sums = self._sums.setdefault(key, [0.0, 0.0])
            sums[0] += new.weight
            sums[1] += new.weight * (1 - new.label if turned else new.label)

    @property
    def comparisons(self) -> list[Comparison]:
        """One a pair of images, whose label is the mean of its labels."""
        return [
            Comparison(first, second, labels / weight, weight)
            for (first, second), (weight, labels) in self._sums.items()
        ]


@dataclass(frozen=True, slots=True)
class _Component:
    """The posterior for one spread and correlation: a Gaussian over compared images, independent for the others.

    The mean and deviation are those of each image, the root is that of the compared images' covariance.
    """

    weight: float
    mean: Array
    root: Array
    deviation: Array


class Belief:
    """What is known of the utilities of n images.

    Args:
        scores: (n,) finite, in any scale; None where there is no scorer.
        comparisons: The answers so far, in any order.

    Attributes:
        mean: (n,) expected utilities.
    """

    def __init__(self, n: int, comparisons: Sequence[Comparison] = (), *, scores: ArrayLike | None = None) -> None:
        self.n = n
        z = _standardized(scores, n)
        self._compared = np.array(sorted({i for c in comparisons for i in (c.first, c.second) if i is not None}), int)
        answers = _design(comparisons, self._compared.tolist())
        correlations = CORRELATIONS if z.any() else (0.0,)
        found = [
            _component(spread * correlation * z, spread**2 * (1 - correlation**2), self._compared, answers)
            for spread, correlation in product(SPREADS, correlations)
        ]
        evidence = np.array([part.weight for part in found])
        shares = np.exp(evidence - evidence.max())
        shares = np.where(shares >= LEAST * shares.sum(), shares, 0)
        self._components = [
            replace(part, weight=float(share))
            for part, share in zip(found, shares / shares.sum(), strict=True)
            if share
        ]
        self.mean: Array = sum((part.weight * part.mean for part in self._components), np.zeros(n))

    def draw(self, rng: np.random.Generator, count: int = 1) -> Array:
        """(count, n) utilities as they could be."""
        shares = np.array([part.weight for part in self._components])
        drawn: list[Array] = []
        for part, many in zip(self._components, rng.multinomial(count, shares / shares.sum()), strict=True):
            values = part.mean + part.deviation * rng.standard_normal((many, self.n))
            noise = rng.standard_normal((many, len(self._compared)))
            values[:, self._compared] = part.mean[self._compared] + noise @ part.root.T
            drawn.append(values)
        together = np.concatenate(drawn)
        return rng.permutation(together) if count > 1 else together

    def order(self) -> list[int]:
        """Indices from the best to the worst; equal ones by index."""
        return sorted(range(self.n), key=lambda i: (-self.mean[i], i))

    def settled(self) -> bool:
        """Whether no answer to any one question would change which images hold the FIRST places.

        An answer moves the expected utilities as it would move the Gaussian with the same mean and covariance.
        """
        order = self.order()
        if self.n <= FIRST:
            return True
        inner, outer = order[:FIRST], order[FIRST : FIRST + RIVALS]
        mean, covariance = self._moments(np.array(inner + outer))
        first, second = np.triu_indices(len(mean), 1)
        moved = covariance[:, first] - covariance[:, second]
        variance = moved[first, np.arange(len(first))] - moved[second, np.arange(len(first))]
        for label in (0.0, 1.0):
            surprise = _surprise(mean[first] - mean[second], variance, label)
            after = mean[:, None] + moved * surprise
            if (after[:FIRST].min(axis=0) < after[FIRST:].max(axis=0)).any():
                return False
        return True

    def _moments(self, places: NDArray[np.int64]) -> tuple[Array, Array]:
        """Mean and covariance of some images' utilities."""
        mean, covariance = self.mean[places], np.zeros((len(places), len(places)))
        column = {index: i for i, index in enumerate(self._compared.tolist())}
        compared = [i for i, index in enumerate(places.tolist()) if index in column]
        of_compared = [column[places[i]] for i in compared]
        for part in self._components:
            own = np.diag(part.deviation[places] ** 2)
            root = part.root[of_compared]
            own[np.ix_(compared, compared)] = root @ root.T
            covariance += part.weight * (own + np.outer(part.mean[places] - mean, part.mean[places] - mean))
        return mean, covariance

    def best_probability(self, rng: np.random.Generator) -> float:
        """The probability that the first of `order` is the best of all, from DRAWS draws."""
        winners = self.draw(rng, DRAWS).argmax(axis=1)
        return float((winners == self.order()[0]).mean())


def _component(mean: Array, variance: float, compared: NDArray[np.int64], answers: tuple[Array, ...]) -> _Component:
    """The posterior for a prior mean of each image and one variance; its weight is the logarithm of the evidence."""
    gaps, labels, weights = answers
    fit = posterior(gaps, labels, mean=mean[compared], variance=variance, weights=weights)
    means, deviation = mean.copy(), np.full(len(mean), variance**0.5)
    means[compared] = fit.mean
    deviation[compared] = np.sqrt(np.diag(fit.covariance))
    root = np.linalg.cholesky(fit.covariance).astype(float)
    return _Component(fit.log_evidence, means, root, deviation)


def _surprise(gap: Array, variance: Array, label: float) -> Array:
    """label - sigmoid(g) at the most probable gap after an answer, where g = gap + variance (label - sigmoid(g))."""
    low, high = gap - variance, gap + variance
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above = middle < gap + variance * (label - expit(middle))
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return label - expit((low + high) / 2)


def _standardized(scores: ArrayLike | None, n: int) -> Array:
    if scores is None or n < 2:
        return np.zeros(n)
    values = np.asarray(scores, float)
    spread = values.std()
    return (values - values.mean()) / spread if spread > 0 else np.zeros(n)


def _design(comparisons: Sequence[Comparison], compared: Sequence[int]) -> tuple[Array, Array, Array]:
    """Gaps, labels and weights of comparisons, a column each compared image."""
    place = {index: column for column, index in enumerate(compared)}
    gaps = np.zeros((len(comparisons), len(compared)))
    for row, comparison in enumerate(comparisons):
        gaps[row, place[comparison.first]] += 1
        if comparison.second is not None:
            gaps[row, place[comparison.second]] -= 1
    labels = np.array([comparison.label for comparison in comparisons], float)
    return gaps, labels, np.array([comparison.weight for comparison in comparisons], float)
