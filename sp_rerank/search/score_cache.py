"""What the strategies with previews share: the steps at which x_0 is scored, and scores that are taken once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from sp_rerank.config import Round, Stage
from sp_rerank.diffusion.batches import Batch
from sp_rerank.diffusion.trajectory import View
from sp_rerank.errors import UsageError, is_out_of_memory
from sp_rerank.run.state import PriorScores
from sp_rerank.search.base import Score, Scored, usable_scores

if TYPE_CHECKING:
    from sp_rerank.diffusion.previews import Previews
    from sp_rerank.diffusion.sampler import Sampler
    from sp_rerank.diffusion.trajectory import Trajectory


class ScoreCache:
    """The scores of a run so far, those of an interrupted one included: each candidate is scored once a stage.

    Args:
        score: (b, 3, H, W) images in [0, 1] to (b,) scores, higher is better.
        prior: Scores that an interrupted run holds already.
    """

    def __init__(self, score: Score, prior: PriorScores) -> None:
        self._score = score
        self._scores: dict[Stage | None, dict[int, float]] = {stage: dict(scores) for stage, scores in prior.items()}

    def forget(self) -> None:
        """Forget the scores of stages, not of finished candidates: other batches take other trajectories."""
        self._scores = {None: self._scores.get(None, {})}

    def missing(self, stage: Stage | None, indices: Sequence[int]) -> bool:
        """Whether any of the candidates has not been seen at a stage."""
        return any(index not in self._scores.get(stage, {}) for index in indices)

    def scores(self, stage: Stage | None, indices: Sequence[int]) -> dict[int, float]:
        """Scores by index; NaN where one is not finite."""
        return {index: self._scores[stage][index] for index in indices}

    def known(self, stage: Stage | None) -> Mapping[int, float]:
        """All scores at a stage, by index."""
        return self._scores.get(stage, {})

    def weighed(self, stages: Sequence[tuple[Stage | None, float]], indices: Sequence[int]) -> dict[int, float]:
        """The weighted sum of the scores at some stages by index; NaN where one of them is not finite."""
        return {index: sum(weight * self._scores[stage][index] for stage, weight in stages) for index in indices}

    def add(self, batch: Batch, stage: Stage | None, total: int) -> Scored:
        """Score what is new in a batch; `total` as in `Scored`."""
        known = self._scores.setdefault(stage, {})
        new = [place for place, index in enumerate(batch.indices) if index not in known]
        scores = torch.tensor([known.get(index, 0.0) for index in batch.indices], dtype=torch.float32)
        if new:
            scores[new] = self._score(batch.images[new]).float()
        scored = Scored(batch, scores, stage, total)
        self._scores[stage] = {**usable_scores(scored), **known}
        return scored


def weights_of(entry: Round, stages: Sequence[Stage]) -> tuple[tuple[Stage, float], ...]:
    """The stages whose scores decide a round, out of those so far, with their weights."""
    return tuple(zip(stages, entry.weights, strict=True)) if entry.weights else ((stages[-1], 1.0),)


def watched_steps(sampler: Sampler, shares: Sequence[float]) -> list[int]:
    """The scheduler steps after which shares of them are done.

    Raises:
        UsageError: if two shares fall on one step, or one on none or the last.
    """
    steps = sampler.steps
    watched = [round(share * steps) for share in shares]
    if any(not 0 < step < steps for step in watched) or watched != sorted(set(watched)):
        raise UsageError(
            f"previews at {', '.join(f'{share:g}' for share in shares)} of {steps} steps fall on steps "
            f"{', '.join(map(str, watched))}; expected different ones from 1 to {steps - 1}, rising: take more "
            "steps or other shares"
        )
    return watched


def preview(trajectory: Trajectory, view: View, previews: Previews, seeds: Mapping[int, int]) -> Batch:
    """What a waiting batch shows, as images; no safety checker has seen them."""
    indices = trajectory.indices
    images = previews.decode(view.x0)
    return Batch(indices, tuple(seeds[i] for i in indices), images, (False,) * len(indices), view.nfe)


def retry_on_oom(
    sampler: Sampler, seeds: Mapping[int, int], attempt: Callable[[], Iterator[Scored]]
) -> Iterator[Scored]:
    """What a search finds; when memory runs out it starts anew with smaller batches, and what is scored stays scored.

    Raises:
        TryAgainError: if memory does not suffice for a single image.
    """
    while True:
        try:
            yield from attempt()
            return
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failed = max(map(len, sampler.blocks(seeds)))
        sampler.shrink(failed)  # once the exception is gone, for it holds the memory
