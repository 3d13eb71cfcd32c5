"""Screening: finished drafts of few steps from every candidate's own noise, more steps for those that look best.

A few-step solver follows the same ordinary differential equation from the same noise, so its image is a coarse version
of the one that all steps would make; a preview of x0 on the way is a blur by comparison. The finalists are made by the
run's own scheduler with the run's own steps from their seeds, so they are the images of an exhaustive search.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sp_rerank.config import Stage
from sp_rerank.run.state import PriorScores
from sp_rerank.search.base import Score, Scored, Strategy, best_of, check_keeps, finish, score_batches, usable_scores

if TYPE_CHECKING:
    from sp_rerank.diffusion.sampler import Sampler

log = logging.getLogger(__name__)

SOLVER = "DPMSolverMultistepScheduler"
"""Of the drafts: DPM-Solver++ of second order (Lu et al. 2022, arXiv 2211.01095), good from few steps on."""


def screening(rounds: Sequence[tuple[int, int]]) -> Strategy:
    """The strategy with these rounds.

    Args:
        rounds: steps of the drafts, and how many candidates go on from there, one a round.
    """

    def search(
        sampler: Sampler, score: Score, seeds: Mapping[int, int], *, top_k: int, prior: PriorScores
    ) -> Generator[Scored]:
        check_keeps([keep for _, keep in rounds], top_k, len(seeds))
        if draws_noise(sampler.scheduler):
            log.warning(
                "%s draws noise at every step, which no draft can foresee: drafts tell less; one that draws none, such "
                "as DPMSolverMultistep, suits this search", type(sampler.scheduler).__name__,
            )  # fmt: skip
        left = dict(seeds)
        for steps, keep in rounds:
            stage = Stage("draft", steps)
            scores = {index: value for index, value in prior.get(stage, {}).items() if index in left}
            for batch in score_batches(sampler.with_steps(steps, SOLVER), score, left, stage, prior):
                scores = {**usable_scores(batch), **scores}
                yield batch
            left = {index: seeds[index] for index in best_of(scores, keep)}
        yield from finish(sampler, score, left, prior)

    return search


def draws_noise(scheduler: Any) -> bool:
    """Whether a scheduler of diffusers draws noise on the way, as far as its name and options tell."""
    config = getattr(scheduler, "config", {})
    return "sde" in str(config.get("algorithm_type", "")) or any(
        mark in type(scheduler).__name__ for mark in ("Ancestral", "DDPM", "SDE", "LCM", "TCD")
    )
