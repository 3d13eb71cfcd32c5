"""Pure: an order of things out of answers to "which of these two?", asked for a few pairs only.

Each round pairs things that stand next to each other in the order so far and were not paired yet, as a Swiss tournament
does; the order is Bradley and Terry's, see `bradley_terry`. Knows numbers, no image, scorer or file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sp_rerank.stats.bradley_terry import posterior

Pair = tuple[int, int]

PRIOR_VARIANCE = 9.0
"""Of a utility, in squared log-odds: two things picked at random are 10 to 1 or more apart in half of all cases."""


@dataclass(frozen=True, slots=True)
class Utilities:
    """What the answers say of n things.

    Attributes:
        mean: n utilities in log-odds: P(a preferred to b) = sigmoid(u(a) - u(b)); their sum is about 0.
        sigma: n standard deviations of them.
        pairs: The pairs that were asked.
    """

    mean: list[float]
    sigma: list[float]
    pairs: list[Pair]


def rounds_for(count: int) -> int:
    """Rounds that `count` things get: 2 log2(count), and no more than give every pair."""
    return 0 if count < 2 else min(count - 1 + count % 2, math.ceil(2 * math.log2(count)))


def from_pairs(count: int, ask: Callable[[Sequence[Pair]], Sequence[float]], *, seed: int = 0) -> Utilities:
    """Ask about pairs, and say what follows.

    Args:
        count: n, number of things.
        ask: From pairs (a, b) of different places to P(a is preferred to b), each in 0..1.
        seed: Of the first round's pairs; the later ones follow from the answers.

    Raises:
        ValueError: If `ask` gives another number of answers than pairs.
    """
    asked: list[Pair] = []
    answers: list[float] = []
    order = [int(place) for place in np.random.default_rng(seed).permutation(count)]
    mean, sigma = [0.0] * count, [math.sqrt(PRIOR_VARIANCE)] * count
    for _ in range(rounds_for(count)):
        pairs = _next_pairs(order, {frozenset(pair) for pair in asked})
        if not pairs:
            break
        given = list(ask(pairs))
        if len(given) != len(pairs):
            raise ValueError(f"expected an answer for each of {len(pairs)} pairs, got {len(given)}")
        asked += pairs
        answers += given
        mean, sigma = _fit(count, asked, answers)
        order = sorted(range(count), key=lambda place: (-mean[place], place))
    return Utilities(mean, sigma, asked)


def _next_pairs(order: Sequence[int], asked: set[frozenset[int]]) -> list[Pair]:
    """Each thing with the next one in the order that it was not paired with; one may be left over."""
    left, pairs = list(order), list[Pair]()
    while left:
        first = left.pop(0)
        second = next((other for other in left if frozenset((first, other)) not in asked), None)
        if second is not None:
            left.remove(second)
            pairs.append((first, second))
    return pairs


def _fit(count: int, pairs: Sequence[Pair], answers: Sequence[float]) -> tuple[list[float], list[float]]:
    gaps = np.zeros((len(pairs), count))
    rows = np.arange(len(pairs))
    gaps[rows, [a for a, _ in pairs]], gaps[rows, [b for _, b in pairs]] = 1.0, -1.0
    found = posterior(gaps, answers, variance=PRIOR_VARIANCE)
    return found.mean.tolist(), np.sqrt(found.covariance.diagonal()).tolist()
