"""Recordings, and schedules simulated on them.

A recording is a run whose every candidate was scored at every draft and preview and finished all the same
(`sp-rerank generate --record`), so any schedule over its stages can be simulated on its scores. Knows run folders and
schedules. Makes no image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sp_rerank.errors import UsageError
from sp_rerank.run.folder import RunDir
from sp_rerank.run.records import Row
from sp_rerank.search.base import best_of
from sp_rerank.search.schedule import Drops, Schedule, ScheduledRound, whole
from sp_rerank.stats import ranking

Array = NDArray[np.float64]

Place = tuple[float, int | None]
"""Where candidates are seen, as a round names it: steps of a draft and the step on its way or None, or share of the
steps of the run and None."""


@dataclass(frozen=True, slots=True)
class Recording:
    """Every candidate of one prompt at every stage.

    Attributes:
        prompt: Prompt of the run.
        made_with: n, steps, model and scorer of the run.
        finished: (n,) scores of the finished candidates, by the scorer that selects; NaN where one is not usable.
        evaluations: Denoiser evaluations of one candidate from noise to finish.
        seen: By the place, (n,) scores and the evaluations of one candidate so far, of a draft from its own beginning.
        gold: (n,) scores of the finished candidates by the held-out truth, a scorer that did not select; `finished`
            where no such scorer is named.
        spacing: Exponent of the drafts' time steps; None for the scheduler's own.
    """

    prompt: str
    made_with: Mapping[str, str | int]
    finished: Array
    evaluations: int
    seen: Mapping[Place, tuple[Array, int]]
    gold: Array
    spacing: float | None = None

    def at(self, entry: ScheduledRound) -> tuple[Array, int]:
        """What a round sees: (n,) scores and the evaluations of one candidate so far.

        Raises:
            UsageError: If that was not recorded.
        """
        place = (entry.at, entry.after)
        if place not in self.seen:
            raise UsageError(
                f"the recording of {self.prompt!r} holds no stage {_shown(place)}; it holds "
                f"{', '.join(map(_shown, self.seen)) or 'none'}: record anew, or plan apart"
            )
        return self.seen[place]

    def price(self, strategy: Drops, before: Sequence[ScheduledRound], then: ScheduledRound | None) -> int:
        """Evaluations of one candidate from a round to the next.

        A trajectory goes on; a draft begins anew, unless the round before looked into the same one.

        Args:
            strategy: Of the rounds.
            before: The round, or none at the beginning.
            then: The next round, None for the finish.
        """
        whole_way = self.evaluations if then is None else self.at(then)[1]
        goes_on = before and (strategy == "halving" or (then is not None and then.at == before[-1].at))
        return whole_way - (self.at(before[-1])[1] if goes_on else 0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a schedule does to one prompt.

    Attributes:
        finalists: indices that are finished.
        evaluations: spent on all candidates.
        decodes: images and previews that were decoded and scored.
    """

    finalists: tuple[int, ...]
    evaluations: int
    decodes: int


def read_recording(run: RunDir, gold: str | None = None, *, scorer: str | None = None) -> Recording:
    """The scores of a recorded run.

    Args:
        run: A run made with `record`.
        scorer: Name or full name of the run's scorer whose scores are read, None for the one that selected.
        gold: Full name of a scorer whose scores the run holds and that did not select: the held-out truth.

    Raises:
        UsageError: if the run was not recorded, is not complete, or does not hold these scorers.
    """
    search = run.config.search
    if not search.records:
        raise UsageError(f"{run.path} is no recording; make one with `sp-rerank generate PROMPT --record`")
    if run.missing:
        raise UsageError(f"{run.path} holds {len(run.rows)} of {run.n} candidates; resume it first")
    rows = [run.rows[index] for index in range(run.n)]
    run.config.require("scorers")
    selecting = run.config.scorers[0]
    name = _named(run, scorer) if scorer else selecting
    if gold and any(gold not in row.scores for row in rows):
        raise UsageError(f"{run.path} holds no scores of {gold}; add them with `sp-rerank compare RUN --scorer ..`")
    seen: dict[Place, tuple[Array, int]] = {}
    spent: dict[Place, int] = {}
    shares = iter(search.previews)
    for number, entry in enumerate(rows[0].stages):
        stage = entry.stage
        trajectory: Place = (stage.of or stage.at if stage.kind == "draft" else 0, None)
        spent[trajectory] = spent.get(trajectory, 0) + entry.nfe
        place: Place = (stage.of, stage.at) if stage.of else (stage.at, None)
        if stage.kind == "preview":
            share = next(shares, None)
            if share is None:
                raise UsageError(f"{run.path} holds other previews than its search records; record anew")
            place = (share, None)
        scores = _stage_scores(rows, number, None if name == selecting else name)
        if not np.isnan(scores).all():  # else this scorer was not asked
            seen[place] = (scores, spent[trajectory])
    if not any(row.status == "ok" for row in rows):
        raise UsageError(f"{run.path} holds no usable candidate; leave it out")
    usable = [row.scores.get(name) if row.status == "ok" else None for row in rows]
    finished = _array(usable)
    run.config.require("prompt", "steps", "model")
    made_with: dict[str, str | int] = {
        "n": run.n, "steps": run.config.steps, "model": run.config.model, "scorer": name,
    }  # fmt: skip
    other = _array(row.scores[gold] for row in rows) if gold else finished
    return Recording(run.config.prompt, made_with, finished, rows[0].own_nfe, seen, other, search.spacing)


def _named(run: RunDir, scorer: str) -> str:
    """The full name of one of a recording's scorers."""
    known = run.config.scorers
    for name in known:
        if scorer in (name, name.split("@")[0]):
            return name
    raise UsageError(f"{run.path} was recorded with {', '.join(known)}, not {scorer}; record anew with that scorer too")


def _stage_scores(rows: Sequence[Row], place: int, other: str | None) -> Array:
    """(n,) scores at a stage, by the scorer that ranks or by another one."""
    stages = [row.stages[place] if place < len(row.stages) else None for row in rows]
    return _array([None if seen is None else seen.score if other is None else seen.also.get(other) for seen in stages])


def _array(values: Iterator[float | None] | Sequence[float | None]) -> Array:
    return np.array([math.nan if value is None else value for value in values], float)


def simulate(schedule: Schedule, recording: Recording, top_k: int) -> Outcome:
    """What a schedule would have done to a recorded prompt.

    Raises:
        UsageError: If the recording lacks a stage of the schedule.
    """
    n = len(recording.finished)
    left, evaluations, decodes = list(range(n)), 0, 0
    for number, entry in enumerate(schedule.rounds):
        evaluations += len(left) * recording.price(schedule.strategy, schedule.rounds[:number], entry)
        decodes += len(left)
        judged = weighed([recording.at(each)[0] for each in schedule.rounds[: number + 1]], entry.weights)
        left = best_of({index: float(judged[index]) for index in left}, whole(entry.keep, n=n, top_k=top_k))
    evaluations += len(left) * recording.price(schedule.strategy, schedule.rounds, None)
    return Outcome(tuple(left), evaluations, decodes + len(left))


def _shown(place: Place) -> str:
    at, after = place
    return f"{at:g}" if after is None else f"{after} of {at:g}"


def weighed(columns: Sequence[Array], weights: Sequence[float]) -> Array:
    """(n,) the weighted sum of scores; the last of them where there are no weights."""
    return columns[-1] if not weights else np.sum([w * c for w, c in zip(weights, columns, strict=True)], axis=0)


def normalized_gains(recording: Recording, finalists: Sequence[int], top_k: int) -> tuple[float, float, float, float]:
    """Gain of the pick and of the best k, whether the pick is the same, overlap of the best k; see `PlanEstimate`.

    The gains are NaN where all candidates score the same.
    """
    scores = recording.finished
    every, left = picks(recording, range(len(scores))), picks(recording, finalists)
    if not left:
        return 0.0, 0.0, 0.0, 0.0
    mean = float(np.nanmean(scores))

    def share(k: int) -> float:
        most = float(np.mean(scores[every[:k]])) - mean
        return (float(np.mean(scores[left[:k]])) - mean) / most if most > 0 else math.nan

    overlap = len(set(every[:top_k]) & set(left[:top_k])) / top_k
    return share(1), share(top_k), float(every[0] == left[0]), overlap


def picks(recording: Recording, indices: Sequence[int]) -> list[int]:
    """The usable ones of some candidates, the best first."""
    scores = [float(recording.finished[i]) for i in indices]
    return [indices[place] for place in ranking.top(scores, len(scores))]
