"""Pure: scores in, an order out, and how ranks and scorers are called. Knows nothing of images, models or files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

HASH = 8  # characters of a scorer's hash that are shown where the name alone is not enough


def finite(score: float | None) -> float | None:
    """A score as JSON can hold it: None for one that is not finite."""
    return score if score is not None and math.isfinite(score) else None


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
    usable = [math.isfinite(score) and not out for score, out in zip(scores, excluded, strict=True)]
    return sorted(range(len(scores)), key=lambda i: (not usable[i], -scores[i] if usable[i] else 0.0, i))


def top(scores: Sequence[float], k: int) -> list[int]:
    """The best k indices with a finite score; fewer where fewer have one."""
    return [index for index in order(scores) if math.isfinite(scores[index])][:k]


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


def mean_ranks(scorings: Sequence[Sequence[float]]) -> list[float]:
    """The mean rank of each candidate over several scorers, whatever their scales. 1 is the best possible.

    Equal scores share the mean of their ranks. A candidate that some scorer gave no finite score is not ranked: it is
    NaN, and the others are ranked as if it were not there.

    Args:
        scorings: one a scorer, of the same candidates.

    Raises:
        ValueError: if the scorings differ in length.
    """
    columns = list(zip(*scorings, strict=True))
    usable = [i for i, column in enumerate(columns) if all(map(math.isfinite, column))]
    ranks = [_shared_ranks([scores[i] for i in usable]) for scores in scorings]
    means = [math.nan] * len(columns)
    for place, i in enumerate(usable):
        means[i] = sum(own[place] for own in ranks) / len(ranks)
    return means


def _shared_ranks(scores: Sequence[float]) -> list[float]:
    """Ranks from 1 for the highest; equal scores share the mean of theirs."""
    ordered = sorted(scores, reverse=True)
    first = {score: place for place, score in reversed(list(enumerate(ordered, start=1)))}
    count = Counter(scores)
    return [first[score] + (count[score] - 1) / 2 for score in scores]


def ordinal(number: int) -> str:
    """For example "2nd"."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def short_names(scorers: Iterable[str]) -> dict[str, str]:
    """Each full name ("sp@1f0c33ab...") without its hash; with the start of it, or all of it, where two would be equal.

    Several scorers as one ("a@1f0c..+b@2e9d...") lose the hash of each.

    Args:
        scorers: full names; each comes back once, in order.
    """
    names = list(dict.fromkeys(scorers))
    short = {name: "+".join(part.partition("@")[0] for part in name.split("+")) for name in names}
    for shorten in (_with_a_short_hash, str):
        count = Counter(short.values())
        short = {name: label if count[label] == 1 else shorten(name) for name, label in short.items()}
    return short


def _with_a_short_hash(name: str) -> str:
    parts = (part.partition("@") for part in name.split("+"))
    return "+".join(f"{plain}{at}{digest[:HASH]}" for plain, at, digest in parts)
