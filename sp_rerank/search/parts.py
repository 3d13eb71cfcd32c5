"""A run, part after part: what was there when it grew is searched before what came to it.

Knows the parts of a configuration and which of them are done. How a part is searched is its strategy's.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import TYPE_CHECKING

from sp_rerank.run.state import RunState
from sp_rerank.search.base import Score, Scored
from sp_rerank.search.schedule import strategy_of

if TYPE_CHECKING:
    from sp_rerank.diffusion.sampler import Sampler


def search_parts(sampler: Sampler, score: Score, state: RunState, *, top_k: int) -> Generator[Scored]:
    """Make and score what a run lacks.

    Args:
        sampler: Makes the images.
        score: Scores a batch of images.
        state: The run as far as it is done; asked again before each part.
        top_k: How many will be kept; only the first part has to leave as many.

    Returns:
        Batches as the strategies yield them; their `total` counts the other parts too, as far as it is known.

    Raises:
        UsageError: As the strategies raise it.
    """
    for start, stop, plan in state.config.parts():
        if all(index in state.rows for index in range(start, stop)):
            continue
        seeds = {index: state.config.seed + index for index in range(start, stop)}
        strategy = strategy_of(plan)
        for scored in strategy(sampler, score, seeds, top_k=1 if start else top_k, prior=state.prior_scores()):
            yield replace(scored, total=_total(state, scored, start))


def _total(state: RunState, scored: Scored, start: int) -> int:
    """Number of candidates that a stage will have scored when the part that begins at an index is done."""
    if not state.config.search.drops:
        return state.n
    return scored.total + (sum(index < start for index in state.seen_at(scored.stage)) if start else 0)
