"""Pure: scores in, an order out. Knows nothing of images, models or files."""

from __future__ import annotations

import math
from collections.abc import Sequence


def order(scores: Sequence[float], excluded: Sequence[bool] | None = None) -> list[int]:
    """Indices from the best to the worst: usable ones by score, then excluded or non-finite ones.

    Equal scores keep the order of their indices, so that a ranking is the same on every machine. Non-finite scores
    are compared with nothing: NaN would otherwise sort first in Python as in torch.

    Args:
        scores: higher is better.
        excluded: candidates that must not win whatever their score, such as those that a safety checker replaced.

    Raises:
        ValueError: if `excluded` has another length than `scores`.
    """
    excluded = excluded or [False] * len(scores)
    usable = [math.isfinite(s) and not out for s, out in zip(scores, excluded, strict=True)]
    return sorted(range(len(scores)), key=lambda i: (not usable[i], -scores[i] if usable[i] else 0.0, i))


def top(scores: Sequence[float], k: int, excluded: Sequence[bool] | None = None) -> list[int]:
    """The best k usable indices, fewer where fewer are usable; flagged and non-finite ones are never among them."""
    out = excluded or [False] * len(scores)
    return [i for i in order(scores, excluded) if math.isfinite(scores[i]) and not out[i]][:k]


def tie_groups(ordered_scores: Sequence[float], margin: float = 0.0) -> list[int]:
    """The tie group of each place in an order: a place joins the group before it while within `margin` of its first.

    Args:
        ordered_scores: from the best to the worst; non-finite ones last, each of them a group of its own.
        margin: the gap below which two scores are not told apart, in the scorer's scale.

    Returns:
        Group numbers from 1, in order.
    """
    groups: list[int] = []
    first = math.nan
    for score in ordered_scores:
        if not (math.isfinite(score) and first - score <= margin):
            groups.append(groups[-1] + 1 if groups else 1)
            first = score
        else:
            groups.append(groups[-1])
    return groups
