"""Chooses a schedule from recordings: the cheapest that keeps the gain, found on some prompts and reported on others.

A recording is a run whose every candidate was scored at every draft and preview and finished all the same
(`sp-rerank generate --record`), so any schedule over its stages can be simulated on its scores. Knows run folders and
schedules. Makes no image.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sp_rerank.errors import UsageError
from sp_rerank.run.folder import RunDir
from sp_rerank.run.records import Row
from sp_rerank.search.base import best_of
from sp_rerank.search.schedule import WHEN, Drops, Schedule, whole
from sp_rerank.stats import agreement, ranking
from sp_rerank.stats.agreement import Estimate

Array = NDArray[np.float64]

KEEPS = (0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7)
"""Shares of the candidates that a round may keep; never less than the best k."""

ROUNDS = 3  # at most

FEWEST = 4  # prompts: two to choose by and two to report on


@dataclass(frozen=True, slots=True)
class Recording:
    """Every candidate of one prompt at every stage.

    Attributes:
        prompt: Prompt of the run.
        made_with: n, steps, model and scorer of the run.
        finished: (n,) scores of the finished candidates, by the scorer that selects; NaN where one is not usable.
        evaluations: Denoiser evaluations of one candidate from noise to finish.
        drafts: By the number of steps, (n,) scores and the evaluations of one draft.
        previews: By the share of the steps, (n,) scores and the evaluations of one candidate so far.
        gold: (n,) scores of the finished candidates by the held-out truth, a scorer that did not select; `finished`
            where no such scorer is named.
    """

    prompt: str
    made_with: Mapping[str, str | int]
    finished: Array
    evaluations: int
    drafts: Mapping[int, tuple[Array, int]]
    previews: Mapping[float, tuple[Array, int]]
    gold: Array


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


@dataclass(frozen=True, slots=True)
class PlanEstimate:
    """What a schedule keeps and spares, over prompts that it was not chosen by.

    Attributes:
        gain: Gain of the pick, (its score - mean) / (best of all - mean); a mean over prompts, like the others.
        top_gain: The same for the mean of the best k that are left, against the best k of all.
        same_pick: share of prompts whose pick is the best of all.
        overlap: Share of the best k of all that are among the best k that are left.
        gold: Gold score of the pick above the mean candidate, over that of the pick of an exhaustive search; both are
            summed over prompts first, for a single denominator may be 0.
        saving: evaluations of an exhaustive search over those of this one.
        decodes: images and previews that are decoded and scored, over those of an exhaustive search.
        prompts: Number of prompts that these are means over.
    """

    gain: Estimate
    top_gain: Estimate
    same_pick: Estimate
    overlap: Estimate
    gold: Estimate
    saving: float
    decodes: float
    prompts: int


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
    drafts: dict[int, tuple[Array, int]] = {}
    previews: dict[float, tuple[Array, int]] = {}
    spent = 0
    for place, (seen, at) in enumerate(zip(rows[0].stages, [*search.drafts, *search.previews], strict=False)):
        scores = _stage_scores(rows, place, None if name == selecting else name)
        spent += 0 if seen.stage.kind == "draft" else seen.nfe
        if np.isnan(scores).all():
            continue  # this scorer was not asked
        if seen.stage.kind == "draft":
            drafts[int(at)] = (scores, seen.nfe)
        else:
            previews[at] = (scores, spent)
    if not any(row.status == "ok" for row in rows):
        raise UsageError(f"{run.path} holds no usable candidate; leave it out")
    usable = [row.scores.get(name) if row.status == "ok" else None for row in rows]
    finished = _array(usable)
    run.config.require("prompt", "steps", "model")
    made_with: dict[str, str | int] = {
        "n": run.n, "steps": run.config.steps, "model": run.config.model, "scorer": name,
    }  # fmt: skip
    other = _array(row.scores[gold] for row in rows) if gold else finished
    return Recording(run.config.prompt, made_with, finished, rows[0].own_nfe, drafts, previews, other)


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
        UsageError: if the recording lacks a stage of the schedule.
    """
    n = len(recording.finished)
    left, evaluations, decodes, gone = list(range(n)), 0, 0, 0
    for when, keep in schedule.rounds:
        stages: Mapping[Any, tuple[Array, int]]
        stages = recording.drafts if schedule.strategy == "screening" else recording.previews
        if when not in stages:
            raise UsageError(f"the recording of {recording.prompt!r} holds no stage {when:g}; it holds {list(stages)}")
        scores, cost = stages[when]
        evaluations += len(left) * (cost - gone)
        decodes += len(left)
        gone = 0 if schedule.strategy == "screening" else cost  # a trajectory goes on, a draft begins anew
        left = best_of({index: float(scores[index]) for index in left}, whole(keep, n=n, top_k=top_k))
    return Outcome(tuple(left), evaluations + len(left) * (recording.evaluations - gone), decodes + len(left))


def normalized_gains(recording: Recording, finalists: Sequence[int], top_k: int) -> tuple[float, float, float, float]:
    """Gain of the pick and of the best k, whether the pick is the same, overlap of the best k; see `PlanEstimate`.

    The gains are NaN where all candidates score the same.
    """
    scores = recording.finished
    every, left = _picks(recording, range(len(scores))), _picks(recording, finalists)
    if not left:
        return 0.0, 0.0, 0.0, 0.0
    mean = float(np.nanmean(scores))

    def share(k: int) -> float:
        most = float(np.mean(scores[every[:k]])) - mean
        return (float(np.mean(scores[left[:k]])) - mean) / most if most > 0 else math.nan

    overlap = len(set(every[:top_k]) & set(left[:top_k])) / top_k
    return share(1), share(top_k), float(every[0] == left[0]), overlap


def _gold(recording: Recording, finalists: Sequence[int]) -> tuple[float, float]:
    """Gold score above the mean candidate, of the pick of the finalists and of the pick of all."""
    gold, mean = recording.gold, float(np.nanmean(recording.gold))
    kept, every = _picks(recording, finalists), _picks(recording, range(len(gold)))
    return float(gold[kept[0]]) - mean if kept else 0.0, float(gold[every[0]]) - mean


def _picks(recording: Recording, indices: Sequence[int]) -> list[int]:
    scores = [float(recording.finished[i]) for i in indices]
    return [indices[place] for place in ranking.top(scores, len(scores))]


def estimate(schedule: Schedule, recordings: Sequence[Recording], top_k: int) -> PlanEstimate:
    """What a schedule keeps and spares on recorded prompts, with intervals from resampling the prompts."""
    outcomes = [simulate(schedule, recording, top_k) for recording in recordings]
    pairs = list(zip(recordings, outcomes, strict=True))
    table = [normalized_gains(recording, outcome.finalists, top_k) for recording, outcome in pairs]
    columns = [[value for value in column if math.isfinite(value)] for column in zip(*table, strict=True)]
    gain, top_gain, same_pick, overlap = (agreement.ratio(column, [1] * len(column)) for column in columns)
    gold = agreement.ratio(*zip(*(_gold(recording, outcome.finalists) for recording, outcome in pairs), strict=True))
    exhaustive = sum(len(recording.finished) * recording.evaluations for recording in recordings)
    spent = sum(outcome.evaluations for outcome in outcomes)
    decodes = sum(outcome.decodes for outcome in outcomes) / sum(len(recording.finished) for recording in recordings)
    return PlanEstimate(gain, top_gain, same_pick, overlap, gold, exhaustive / spent, decodes, len(recordings))


def schedules(recordings: Sequence[Recording], strategies: Sequence[Drops] = tuple(WHEN)) -> Iterator[Schedule]:
    """Every schedule of up to ROUNDS rounds that can be simulated on the recordings."""
    for strategy in strategies:
        places = sorted(recordings[0].drafts if strategy == "screening" else recordings[0].previews)
        for rounds in range(1, ROUNDS + 1):
            for whens, keeps in product(combinations(places, rounds), combinations(reversed(KEEPS), rounds)):
                yield Schedule(strategy, tuple(zip(whens, keeps, strict=True)))


def cheapest(
    recordings: Sequence[Recording],
    top_k: int,
    *,
    gain: float,
    top_gain: float,
    strategies: Sequence[Drops] = tuple(WHEN),
) -> Schedule:
    """The schedule with the fewest evaluations whose mean gains over the recordings reach the goals.

    Raises:
        UsageError: if none does.
    """
    best, fewest = None, math.inf
    for schedule in schedules(recordings, strategies):
        outcomes = [simulate(schedule, recording, top_k) for recording in recordings]
        spent = sum(outcome.evaluations for outcome in outcomes)
        if spent >= fewest:
            continue
        kept = [
            normalized_gains(recording, outcome.finalists, top_k)
            for recording, outcome in zip(recordings, outcomes, strict=True)
        ]
        if np.nanmean([row[0] for row in kept]) >= gain and np.nanmean([row[1] for row in kept]) >= top_gain:
            best, fewest = schedule, spent
    if best is None:
        raise UsageError(
            f"no schedule reaches a gain of {gain:g} and {top_gain:g}; ask for less, or record more stages"
        )
    return best


def plan(
    recordings: Sequence[Recording],
    *,
    top_k: int = 4,
    gain: float = 0.99,
    top_gain: float = 0.97,
    strategies: Sequence[Drops] = tuple(WHEN),
    seed: int = 0,
) -> tuple[Schedule, PlanEstimate]:
    """The cheapest schedule on one half of the prompts, and what it does to the other half.

    Args:
        recordings: Recordings of different prompts, made alike.
        top_k: how many images are wanted.
        gain: Gain of the pick in (0, 1] that must be kept on the half that chooses.
        top_gain: The same for the mean of the best `top_k`.
        strategies: Strategies to choose among, out of `sp_rerank.search.schedule.WHEN`.
        seed: Seed by which the prompts are halved.

    Raises:
        UsageError: if there are fewer than FEWEST recordings, or they were not made alike, or no schedule will do.
    """
    prompts = sorted({recording.prompt for recording in recordings})
    if len(prompts) < FEWEST:
        raise UsageError(f"expected recordings of at least {FEWEST} different prompts, got {len(prompts)}")
    first = recordings[0]
    for other in recordings:
        for key, value in first.made_with.items():
            if other.made_with[key] != value:
                raise UsageError(
                    f"the recordings were not made alike: {key} is {value!r} and {other.made_with[key]!r}; plan apart"
                )
    random.Random(seed).shuffle(prompts)
    choosing = set(prompts[: len(prompts) // 2])
    chosen = cheapest(
        [recording for recording in recordings if recording.prompt in choosing],
        top_k,
        gain=gain,
        top_gain=top_gain,
        strategies=strategies,
    )
    found = Schedule(chosen.strategy, chosen.rounds, dict(first.made_with))
    return found, estimate(found, [recording for recording in recordings if recording.prompt not in choosing], top_k)
