"""Chooses a schedule from recordings: the cheapest that keeps the gain, found on some prompts and reported on others.

Knows recordings and schedules. Makes no image.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sp_rerank.errors import UsageError
from sp_rerank.search.cheapest import cheapest
from sp_rerank.search.recorded import Recording, normalized_gains, picks, simulate
from sp_rerank.search.schedule import WHEN, Drops, Schedule
from sp_rerank.stats import agreement
from sp_rerank.stats.agreement import Estimate

FEWEST = 4  # prompts: two to choose by and two to report on


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


def _gold(recording: Recording, finalists: Sequence[int]) -> tuple[float, float]:
    """Gold score above the mean candidate, of the pick of the finalists and of the pick of all."""
    gold, mean = recording.gold, float(np.nanmean(recording.gold))
    kept, every = picks(recording, finalists), picks(recording, range(len(gold)))
    return float(gold[kept[0]]) - mean if kept else 0.0, float(gold[every[0]]) - mean


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
        if other.spacing != first.spacing:
            raise UsageError(
                f"the recordings were not made alike: spacing is {first.spacing} and {other.spacing}; plan apart"
            )
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
    found = replace(chosen, made_for=dict(first.made_with))
    return found, estimate(found, [recording for recording in recordings if recording.prompt not in choosing], top_k)
