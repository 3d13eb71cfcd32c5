"""Pure: the best k that are not near-copies of each other. Knows nothing of images, models or files."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sp_rerank.stats import ranking

SCORE_COUNTS = 0.5
"""Weight of the score against being unlike: 1 is the plain top-k, 0 looks at nothing but likeness after the first. With
.5 an image of average likeness is preferred to a near-copy that is ahead by up to half of the way from the mean to the
best.
"""

COPY = 0.99
"""The cosine from which on two images are copies of one picture. By clip-mini, 48 images of one prompt are at most .968
alike, and each is more than .996 like itself after JPEG at quality 85.
"""

DIGITS = 6  # of a cosine; beyond them equal images differ by rounding

Array = NDArray[np.float64]


def diverse(
    scores: Sequence[float],
    embeddings: ArrayLike,
    k: int,
    *,
    score_counts: float = SCORE_COUNTS,
) -> list[int]:
    """Pick k candidates one by one, each good and unlike those before it: maximal marginal relevance.

    Source: Carbonell and Goldstein 1998 (SIGIR), the candidate that maximizes
    lambda * relevance - (1 - lambda) * its greatest similarity to one that was picked. So that neither the scorer's
    scale nor that of its embeddings matters, relevance is the way from the mean candidate (0) to the best (1), and
    similarity the share of all pairs that are less alike (0..1): images of one prompt are all alike, and what counts
    is whether two of them are more so than most. The first pick is the best of all; of two that are worth the same
    the one of the higher score is taken. A copy of one that was picked is taken when nothing else is left
    (unless only the score counts).

    Args:
        scores: n, higher is better; those that are not finite are never picked.
        embeddings: (n, d) of the images; similar ones have a high cosine.
        k: how many; fewer come back where fewer are usable.
        score_counts: lambda, in [0, 1].

    Returns:
        Indices in the order of the picks.

    Raises:
        ValueError: if there is not an embedding for each score, or score_counts is out of its range.
    """
    rows = np.asarray(embeddings, float)
    if rows.ndim != 2 or len(rows) != len(scores):
        raise ValueError(f"expected an embedding for each of {len(scores)} scores, got shape {rows.shape}")
    if not 0 <= score_counts <= 1:
        raise ValueError(f"score_counts is {score_counts}; expected 0 to 1")
    usable = [i for i in ranking.top(scores, len(scores)) if np.isfinite(rows[i]).all()]
    cosine = _cosines(rows[usable])
    relevance, likeness = _relevance([scores[i] for i in usable]), _likeness(cosine)
    picked: list[int] = []  # places in `usable`, the best first: argmax takes the better of two equals
    nearest, copied = np.zeros(len(usable)), np.zeros(len(usable), bool)
    for _ in range(min(k, len(usable))):
        marginal = score_counts * relevance - (1 - score_counts) * nearest
        marginal[picked] = -math.inf
        fresh = np.where(copied, -math.inf, marginal)
        place = int(np.argmax(fresh if np.isfinite(fresh).any() else marginal)) if picked else 0
        nearest = np.maximum(nearest, likeness[place]) if picked else likeness[place]
        copied |= (cosine[place] >= COPY) & (score_counts < 1)
        picked.append(place)
    return [usable[place] for place in picked]


def copies(embeddings: ArrayLike) -> int:
    """How many of n images, given as (n, d) embeddings, are copies of one before them."""
    rows = np.asarray(embeddings, float)
    return int((np.tril(_cosines(rows), -1) >= COPY).any(axis=1).sum()) if len(rows) else 0


def score_cost(scores: Sequence[float], chosen: Sequence[int]) -> float:
    """The mean score of the best k less that of the k chosen, in units of the score; NaN for no choice."""
    if not chosen:
        return math.nan
    best = ranking.top(scores, len(chosen))
    return float(np.mean([scores[i] for i in best]) - np.mean([scores[i] for i in chosen]))


def _relevance(scores: Sequence[float]) -> Array:
    """The way from the mean to the best, 0..1 above the mean and negative below; all 0 where they are equal."""
    array = np.asarray(scores, float)
    way = array.max() - array.mean() if len(array) else 0.0
    return (array - array.mean()) / way if way > 0 else np.zeros_like(array)


def _cosines(rows: Array) -> Array:
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(float).tiny)
    cosines: Array = unit @ unit.T
    return np.round(cosines, DIGITS)


def _likeness(cosine: Array) -> Array:
    """(n, n): the share of all pairs whose cosine is lower; half of those that are equal count."""
    pairs = np.sort(cosine[np.triu_indices(len(cosine), 1)])
    below, up_to = (np.searchsorted(pairs, cosine, side) for side in ("left", "right"))
    return (below + up_to) / 2 / max(len(pairs), 1)
