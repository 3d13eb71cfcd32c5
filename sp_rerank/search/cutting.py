"""Candidates on their way through one trajectory: scored at some steps, the weak ones cut from their batch there.

What halving does on the run's own trajectory, and screening inside a draft. Knows trajectories and scores; knows
nothing of where the numbers come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sp_rerank.config import Stage
from sp_rerank.config.rules import MAX_CANDIDATES
from sp_rerank.diffusion.trajectory import open_trajectories
from sp_rerank.search.base import Scored, best_of
from sp_rerank.search.score_cache import ScoreCache, preview, retry_on_oom

if TYPE_CHECKING:
    from sp_rerank.diffusion.previews import Previews
    from sp_rerank.diffusion.sampler import Sampler
    from sp_rerank.diffusion.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Look:
    """A step of a trajectory at which candidates are scored.

    Attributes:
        stage: Where that is; None for the finished image.
        step: Number of scheduler steps done; None at the end.
        keep: Number of candidates that go on.
        judged_by: Stages whose scores choose them, with their weights.
    """

    stage: Stage | None
    step: int | None = None
    keep: int = MAX_CANDIDATES
    judged_by: tuple[tuple[Stage | None, float], ...] = ()


def follow(
    sampler: Sampler, seeds: Mapping[int, int], looks: Sequence[Look], *, cache: ScoreCache, previews: Previews
) -> Iterator[Scored]:
    """Follow candidates from their noise to the last look, and score them at each.

    Those that a look cuts do not come back. What the cache holds is neither made nor scored again; when memory runs out
    it all begins anew with smaller batches, and what is scored stays scored.

    Args:
        sampler: Makes the images.
        seeds: index -> seed.
        looks: In the order of their steps; the last may be at the end.
        cache: The scores of the run.
        previews: Decodes what is seen on the way.

    Raises:
        TryAgainError: If memory does not suffice for a single image.
    """
    watched = [look.step for look in looks if look.step is not None]

    def attempt() -> Iterator[Scored]:
        with open_trajectories(sampler, seeds, watched) as trajectories:
            for number, look in enumerate(looks):
                left = _left(trajectories)
                for trajectory in trajectories:
                    if not cache.missing(look.stage, trajectory.indices):
                        continue
                    if look.step is None:
                        batch = trajectory.finish()
                    else:
                        batch = preview(trajectory, trajectory.advance_to(number), previews, seeds)
                    yield cache.add(batch, look.stage, len(left))
                if look.step is not None and look.keep < len(left):
                    _drop(trajectories, number, cache.weighed(look.judged_by, left), look.keep)

    yield from retry_on_oom(sampler, seeds, attempt)


def _left(trajectories: Sequence[Trajectory]) -> list[int]:
    return [index for trajectory in trajectories for index in trajectory.indices]


def _drop(trajectories: Sequence[Trajectory], number: int, scores: Mapping[int, float], keep: int) -> None:
    """Cut every batch to its candidates among the best; a batch with none of them ends."""
    best = set(best_of(scores, keep))
    for trajectory in trajectories:
        kept = [place for place, index in enumerate(trajectory.indices) if index in best]
        if len(kept) < len(trajectory.indices):
            trajectory.prune(number, kept)
