"""Pure: what the best of n candidates is expected to score, and which n is enough. Knows no image or file."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from sp_rerank.stats.agreement import Array, finite_pairs

ENOUGH = 0.95  # of the gain from the mean candidate to the best one: where more candidates hardly pay


def expected_best(scores: ArrayLike, values: ArrayLike | None = None) -> Array:
    """What the best of n candidates is expected to score, for n = 1..N, if n of the N are drawn without replacement.

    The candidate of the i-th lowest score is the best of C(i-1, n-1) of the C(N, n) sets. Source: order statistics of
    a finite population; with a second scorer Nakano et al. 2021 (arXiv 2112.09332, appendix I), and Hilton and Gao 2022
    (openai.com/research/measuring-goodharts-law). The weights come one from the other by ratios of at most 1, so that
    no binomial coefficient is ever formed.

    Args:
        scores: Scores of N candidates by the scorer that picks.
        values: of the same candidates, by the scorer (or the held-out truth) that the pick is measured with; `scores`
            by default. Of candidates with equal scores each is as likely to be picked.

    Returns:
        (N,) of the candidates that are finite on both sides: the first is their mean, the last the best one's.
    """
    score, value = finite_pairs(scores, scores if values is None else values)
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    alike = (np.bincount(place, value) / count)[place] if len(score) else value
    total, n = len(score), np.arange(1, len(score) + 1)
    weight, curve = n / max(total, 1), np.zeros(total)
    for i, average in zip(range(total, 0, -1), alike[np.argsort(score)][::-1], strict=True):
        curve += weight * average
        weight = weight * np.maximum(i - n, 0) / max(i - 1, 1)
    return curve


def n_for_gain(curve: ArrayLike, share: float = ENOUGH) -> int:
    """The smallest n whose best candidate has `share` of the gain from the mean to the best of all; 0 without any.

    Args:
        curve: of `expected_best`, of the scorer that picks, by its own scores.
        share: Share of the gain, in [0, 1]. More candidates than this pay less and less.
    """
    best = np.asarray(curve, float)
    if not len(best):
        return 0
    wanted = min(best[0] + share * (best[-1] - best[0]), best[-1])  # rounding must not ask for more than there is
    return int(np.argmax(best >= wanted)) + 1
