"""A linear head on differences of features, fitted to answers: what a taste is made of.

Bradley and Terry's model with a Gaussian prior (ridge); how far the head may leave the base's score is chosen by
leaving out one prompt after the other. Knows numbers; knows no image, person or file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from sp_rerank.stats.bradley_terry import posterior

Array = NDArray[np.float64]

FEWEST = 10  # answers that one image is better, before anything is fitted
VARIANCES = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Of the head's prior, in units of the gaps' root mean square; with 0 the base's score is all that counts."""

SCORE_VARIANCE = 4.0  # of the weight of the base's score, whose gaps have spread 1
DIRECTIONS = 128  # in which the answers' gaps differ most; the others are left at 0
REFITS = 20  # heads of which each predicts the next answers


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers as numbers, in the order in which they were given.

    Attributes:
        score: (k,) the base's score of the first image minus that of the second.
        gaps: (k, m) the same of all features but the score.
        labels: (k,) 1, 0 or .5.
        prompts: (k,) number of each answer's prompt.
        fresh: (k,) whether the question was asked for the first time.
    """

    score: Array
    gaps: Array
    labels: Array
    prompts: NDArray[np.int64]
    fresh: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, which: Any) -> Answers:
        """Some of the answers."""
        return Answers(self.score[which], self.gaps[which], self.labels[which], self.prompts[which], self.fresh[which])


@dataclass(frozen=True, slots=True)
class Head:
    """Fitted weights.

    Attributes:
        score: Of the base's score.
        weights: (m,) of the other features.
        variance: The one of VARIANCES that was chosen.
        left_out: (k,) log-odds of each answer, predicted without its prompt; without itself, where there is one prompt.
    """

    score: float
    weights: Array
    variance: float
    left_out: Array


def fit(answers: Answers) -> Head:
    """The head that predicts left-out prompts best."""
    score_scale, gap_scale = _scale(answers.score), _scale(np.linalg.norm(answers.gaps, axis=1))
    reduced, directions = _reduce(answers.gaps / gap_scale)
    scaled = answers.score / score_scale
    groups = answers.prompts if len(set(answers.prompts.tolist())) > 1 else np.arange(len(answers))
    best: tuple[float, float, Array, Array] | None = None
    for variance in VARIANCES:
        x = np.column_stack([scaled, reduced]) if variance else scaled[:, None]
        spread = np.full(x.shape[1], variance)
        spread[0] = SCORE_VARIANCE
        found = posterior(x, answers.labels, variance=spread)
        left_out = _without_group(x, answers.labels, found.mean, found.covariance, groups)
        loss = float(np.sum(np.logaddexp(0, left_out) - answers.labels * left_out))
        if best is None or loss < best[0]:
            best = loss, variance, found.mean, left_out
    assert best is not None
    _, variance, mean, left_out = best
    weights = directions @ mean[1:] / gap_scale if variance else np.zeros(answers.gaps.shape[1])
    return Head(float(mean[0] / score_scale), weights, variance, left_out)


def predict(head: Head, answers: Answers) -> Array:
    """(k,) log-odds that the first image is preferred."""
    return answers.score * head.score + answers.gaps @ head.weights


def _scale(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2))) or 1.0


def _reduce(gaps: Array) -> tuple[Array, Array]:
    """Gaps in the directions in which they differ most, and these directions as columns."""
    if not gaps.shape[1]:
        return gaps, np.zeros((0, 0))
    _, _, directions = np.linalg.svd(gaps, full_matrices=False)
    kept = directions[:DIRECTIONS].T
    return gaps @ kept, kept


def _without_group(x: Array, labels: Array, w: Array, covariance: Array, groups: NDArray[Any]) -> Array:
    """Log-odds of each answer by the weights that its group had no part in, up to one Newton step.

    Approximate leave-one-out (Rad and Maleki 2020, arXiv 1801.10243, equation 8), a group at a time: with H the Hessian
    of all, A = X H^-1 X', and the group's own curvature W and residual r, it is eta + A (I - W A)^-1 r.
    """
    logits = x @ w
    p = expit(logits)
    found = logits.copy()
    for group in np.unique(groups):
        own = groups == group
        a = x[own] @ covariance @ x[own].T
        curvature = (p[own] * (1 - p[own]))[:, None]
        found[own] += a @ np.linalg.solve(np.eye(len(a)) - curvature * a, p[own] - labels[own])
    return found


def predict_onward(answers: Answers) -> Array:
    """(k,) log-odds of each answer by a head that was fitted on answers before it; NaN of the first FEWEST.

    Prequential (Dawid 1984): no answer is lost to a test set. The head is fitted anew REFITS times.
    """
    found = np.full(len(answers), math.nan)
    ends = np.unique(np.linspace(FEWEST, len(answers), REFITS + 1).astype(int))
    for begin, end in pairwise(ends.tolist()):
        found[begin:end] = predict(fit(answers.part(slice(begin))), answers.part(slice(begin, end)))
    return found
