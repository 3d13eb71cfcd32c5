"""The cheapest schedule that keeps a gain on recordings; the scores of its rounds are weighed together.

Knows recordings and what a round may keep. Knows nothing of folders or images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sp_rerank.errors import UsageError
from sp_rerank.search.recorded import Array, Place, Recording, weighed
from sp_rerank.search.schedule import WHEN, Drops, Schedule, ScheduledRound, whole

KEEPS = (0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7)
"""Shares of the candidates that a round may keep; never less than the best k."""

ROUNDS = 3  # at most

LOOK = 0.5
"""Of decoding and scoring an image, in evaluations: a tenth with a small decoder, 1.6 with Stable Diffusion's own."""

RIDGE = 0.01  # beside correlations of 1
FEWEST_SCORES = 20  # for each weight, in a fit


def cheapest(
    recordings: Sequence[Recording],
    top_k: int,
    *,
    gain: float,
    top_gain: float,
    strategies: Sequence[Drops] = tuple(WHEN),
) -> Schedule:
    """The schedule that costs least, in evaluations and LOOK for each image, and whose mean gains reach the goals.

    Args:
        recordings: Recordings of different prompts, made alike.
        top_k: How many images are wanted.
        gain: Gain of the pick that must be kept.
        top_gain: The same for the mean of the best `top_k`.
        strategies: To choose among.

    Raises:
        UsageError: If none does, or the recordings do not hold the same stages.
    """
    hunt = _Hunt(recordings, top_k, gain, top_gain)
    for strategy in strategies:
        hunt.search(strategy)
    if hunt.best is None:
        raise UsageError(
            f"no schedule reaches a gain of {gain:g} and {top_gain:g}; ask for less, or record more stages"
        )
    return hunt.best


class _Hunt:
    """Depth-first over rounds: what a round keeps is finished, or looked at again.

    A round that loses too much is left, for later ones can only lose more; so is one that costs more than the best
    schedule so far.
    """

    def __init__(self, recordings: Sequence[Recording], top_k: int, gain: float, top_gain: float) -> None:
        self.best: Schedule | None = None
        self._recordings, self._top_k, self._goals = recordings, top_k, (gain, top_gain)
        self._yardsticks = [Yardstick(recording, top_k) for recording in recordings]
        self._n = len(recordings[0].finished)
        self._keeps = sorted({whole(keep, n=self._n, top_k=top_k): keep for keep in KEEPS}.items())
        self._lowest = math.inf

    def search(self, strategy: Drops) -> None:
        """Look through the schedules of a strategy; `best` is the cheapest of all so far."""
        first = self._recordings[0]
        places = [place for place in first.seen if (place[0] < 1) == (strategy == "halving")]
        for recording in self._recordings:
            for at, after in places:
                recording.at(ScheduledRound(at, 1, after))  # refuses one that lacks a stage
        if places:
            places.sort(key=lambda place: (place[0], place[1] or place[0]))
            everyone = [list(range(self._n)) for _ in self._recordings]
            empty = Schedule(strategy, (), spacing=first.spacing if strategy == "screening" else None)
            self._extend(empty, Fit(self._recordings, places), 0, everyone, 0.0)

    def _extend(self, so_far: Schedule, fit: Fit, begin: int, left: Sequence[Sequence[int]], spent: float) -> None:
        """Go through what can follow some rounds.

        Args:
            so_far: These rounds.
            fit: Weighs the scores; its places from `begin` on come later than the rounds.
            begin: See `fit`.
            left: Indices that the rounds leave, prompt by prompt.
            spent: Evaluations on one prompt so far.
        """
        first, rounds, m = self._recordings[0], so_far.rounds, len(left[0])
        for number, (at, after) in enumerate(fit.places[begin:], start=begin + 1):
            entry = ScheduledRound(at, 1, after)
            there = spent + m * (first.price(so_far.strategy, rounds[-1:], entry) + LOOK)
            ahead = first.price(so_far.strategy, (entry,), None) + LOOK
            if there + self._top_k * ahead >= self._lowest:
                continue
            for weights in _weightings(fit, rounds, (at, after)):
                judged = [*rounds, ScheduledRound(at, 1, after, weights)]
                pairs = zip(self._recordings, left, strict=True)
                orders = [_order(recording, some, judged) for recording, some in pairs]
                enough = self._fewest(orders, m)
                for kept, keep in self._keeps:
                    if enough <= kept < m:
                        grown = replace(so_far, rounds=(*rounds, judged[-1]._replace(keep=keep)))
                        remain = [sorted(order[:kept]) for order in orders]
                        self._take(grown, there + kept * ahead)
                        self._go_on(grown, fit, number, remain, there)

    def _take(self, schedule: Schedule, price: float) -> None:
        if price < self._lowest:
            self.best, self._lowest = schedule, price

    def _go_on(self, grown: Schedule, fit: Fit, begin: int, left: Sequence[Sequence[int]], spent: float) -> None:
        if len(grown.rounds) < ROUNDS:
            self._extend(grown, fit, begin, left, spent)

    def _fewest(self, orders: Sequence[Sequence[int]], m: int) -> float:
        """The fewest candidates, of those that a round may keep, that reach the goals if they are finished."""
        for kept, _ in self._keeps:
            if kept >= m:
                break
            pairs = zip(self._yardsticks, orders, strict=True)
            gains = np.array([yardstick.gains(order[:kept]) for yardstick, order in pairs])
            if np.all(np.nanmean(gains, axis=0) >= self._goals):
                return kept
        return math.inf


def _weightings(fit: Fit, rounds: Sequence[ScheduledRound], place: Place) -> list[tuple[float, ...]]:
    """How the scores of rounds and of a place that comes next can be weighed: the last alone, or all by the fit."""
    return [(), fit.weights([*((each.at, each.after) for each in rounds), place])] if rounds else [()]


def _order(recording: Recording, left: Sequence[int], rounds: Sequence[ScheduledRound]) -> list[int]:
    """Indices that are left, those that the last round finds best first."""
    judged = weighed([recording.at(entry)[0] for entry in rounds], rounds[-1].weights)[list(left)]
    order = np.argsort(-judged, kind="stable")  # NaN comes last
    return [left[place] for place in order.tolist()]


class Yardstick:
    """The gains of finishing some candidates of a recording: `normalized_gains`, without the overlap and quicker."""

    def __init__(self, recording: Recording, top_k: int) -> None:
        finite = recording.finished[np.isfinite(recording.finished)]
        self._scores = np.where(np.isfinite(recording.finished), recording.finished, -math.inf)
        self._mean, self._top_k = float(finite.mean()), top_k
        best = np.sort(finite)[::-1][:top_k]
        ways = np.array([best[0], best.mean()]) - self._mean
        self._ways = np.where(ways > 0, ways, math.nan)

    def gains(self, left: Sequence[int]) -> Array:
        """(2,) gain of the pick and of the best k; NaN where all candidates score the same."""
        scores = np.sort(self._scores[list(left)])[::-1][: self._top_k]
        scores = scores[np.isfinite(scores)]
        if not len(scores):
            return np.zeros(2)
        return (np.array([scores[0], scores.mean()]) - self._mean) / self._ways


class Fit:
    """The linear models of the finished score from what was seen, by ridge regression within prompts.

    Args:
        recordings: Recordings of different prompts, made alike.
        places: Where candidates are seen.

    Attributes:
        places: These.

    Raises:
        UsageError: If too few candidates have usable scores at all of these.
    """

    def __init__(self, recordings: Sequence[Recording], places: Sequence[Place]) -> None:
        self.places = list(places)
        blocks = [_standard(recording, places) for recording in recordings]
        rows = np.concatenate(blocks) if blocks else np.zeros((0, len(places) + 1))
        if len(rows) < FEWEST_SCORES * ROUNDS:
            raise UsageError(
                f"{len(rows)} candidates of the recordings have usable scores at every stage; expected at least "
                f"{FEWEST_SCORES * ROUNDS} to weigh scores by: record more prompts"
            )
        self._gram = rows.T @ rows / len(rows)

    def weights(self, places: Sequence[Place]) -> tuple[float, ...]:
        """A weight for each of some places."""
        at = [self.places.index(place) for place in places]
        spread = np.sqrt(np.maximum(np.diag(self._gram)[at], 1e-12))
        inner = self._gram[np.ix_(at, at)] / np.outer(spread, spread) + RIDGE * np.eye(len(at))
        solved = np.linalg.solve(inner, self._gram[at, -1] / spread) / spread
        return tuple(float(f"{weight:.4g}") for weight in solved)


def _standard(recording: Recording, places: Sequence[Place]) -> Array:
    """(usable candidates, places + 1) scores less their means, in units of the spread of the finished ones, which are
    the last column; without rows where the candidates do not differ."""
    columns = [*(recording.at(ScheduledRound(at, 1, after))[0] for at, after in places), recording.finished]
    table = np.stack(columns, axis=1)
    table = table[np.isfinite(table).all(axis=1)]
    table = table - table.mean(axis=0) if len(table) else table
    spread = float(table[:, -1].std()) if len(table) else 0.0
    return table / spread if spread > 0 else table[:0]
