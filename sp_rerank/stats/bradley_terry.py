"""Pure: what answers to "which of these two?" say of utilities. Knows numbers, no image, person or file.

P(a preferred to b) = sigmoid(u(a) - u(b)), Bradley and Terry's model, where u = w . x for given x: with one indicator a
thing, w are the utilities themselves; with features of the things, w are the weights of a head. In both cases the prior
is Gaussian and the posterior Laplace's approximation of it (Bishop 2006, section 4.5).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sp_rerank.stats.lazy_scipy import scipy

Array = NDArray[np.float64]

STEPS = 50  # Newton's; five to ten are the rule
SMALLEST = 1e-8  # of a step, in units of the prior's standard deviation


@dataclass(frozen=True, slots=True)
class Posterior:
    """A Gaussian that approximates what is known of w.

    Attributes:
        mean: (d,) the most probable w.
        covariance: (d, d)
        log_evidence: Logarithm of the probability of the answers before they were given; compares priors.
    """

    mean: Array
    covariance: Array
    log_evidence: float


def posterior(
    gaps: ArrayLike,
    labels: ArrayLike,
    *,
    mean: ArrayLike = 0.0,
    variance: ArrayLike = 1.0,
    weights: ArrayLike = 1.0,
) -> Posterior:
    """What answers say of w.

    Args:
        gaps: (k, d), x of the first thing minus that of the second; k may be 0.
        labels: (k,) 1 if the first is preferred, 0 if the second, .5 for a tie: half an answer each way.
        mean: (d,) or a number, of the prior.
        variance: (d,) or a number, of the prior, whose covariance is diagonal.
        weights: (k,) or a number; how many answers each one counts for.

    Raises:
        ValueError: If shapes do not fit each other.
    """
    x = np.atleast_2d(np.asarray(gaps, float))
    label = np.asarray(labels, float)
    if x.ndim != 2 or label.shape != (len(x),):
        raise ValueError(f"expected k gaps of d numbers and k labels, got shapes {x.shape} and {label.shape}")
    d = x.shape[1]
    prior, precision = np.broadcast_to(np.asarray(mean, float), d), 1 / np.broadcast_to(np.asarray(variance, float), d)
    weight = np.broadcast_to(np.asarray(weights, float), len(x))
    expit = scipy("special").expit

    def value(w: Array) -> float:
        return float(_log_likelihood(x @ w, label, weight) - 0.5 * precision @ (w - prior) ** 2)

    w, reached = prior.copy(), value(prior)
    for _ in range(STEPS):
        p = expit(x @ w)
        slope = x.T @ (weight * (label - p)) - precision * (w - prior)
        step = _solve(_hessian(x, weight * p * (1 - p), precision), slope)
        length = 1.0
        while (there := value(w + length * step)) < reached and length > SMALLEST:
            length /= 2
        w, reached = (w + length * step, there) if there >= reached else (w, reached)
        if float(np.abs(step * np.sqrt(precision)).max(initial=0.0)) < SMALLEST**0.5:
            break
    p = expit(x @ w)
    hessian = _hessian(x, weight * p * (1 - p), precision)
    covariance = _solve(hessian, np.eye(d))
    # the integral of exp(value) by Laplace's method; the prior's own normalization is in the first term
    log_evidence = reached + 0.5 * (float(np.log(precision).sum()) - float(np.linalg.slogdet(hessian)[1]))
    return Posterior(w, (covariance + covariance.T) / 2, log_evidence)


def _hessian(x: Array, curvature: Array, precision: Array) -> Array:
    hessian = (x * curvature[:, None]).T @ x
    hessian[np.diag_indices_from(hessian)] += precision
    return hessian


def _solve(matrix: Array, right: Array) -> Array:
    return scipy("linalg").solve(matrix, right, assume_a="pos")


def _log_likelihood(gap: Array, label: Array, weight: Array) -> float:
    """The logarithm of the probability of the labels; a tie is half of each answer."""
    return float(weight @ (label * gap - np.logaddexp(0, gap)))
