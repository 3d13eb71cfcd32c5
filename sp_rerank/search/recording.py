"""Recording: every candidate at every draft and preview of a grid, and finished. What `sp-rerank plan` learns from."""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING

from sp_rerank.config import Round, SearchPlan
from sp_rerank.diffusion.watchable import check_watchable
from sp_rerank.errors import UnwatchableError
from sp_rerank.run.state import PriorScores
from sp_rerank.search.base import Score, Scored, Strategy, finish
from sp_rerank.search.halving import halving
from sp_rerank.search.score_cache import ScoreCache
from sp_rerank.search.screening import looks_of, make_drafts

if TYPE_CHECKING:
    from sp_rerank.diffusion.sampler import Sampler

log = logging.getLogger(__name__)


def recording(plan: SearchPlan) -> Strategy:
    """The strategy with the grid of a plan, its drafts, the looks inside them and its previews; it spares nothing."""

    def search(
        sampler: Sampler, score: Score, seeds: Mapping[int, int], *, top_k: int, prior: PriorScores
    ) -> Generator[Scored]:
        rounds, inside = [Round(share, len(seeds)) for share in plan.previews], plan.inside
        try:
            check_watchable(sampler)
        except UnwatchableError as error:
            log.warning("only complete drafts are recorded: %s", error)
            rounds, inside = [], ()
        cache = ScoreCache(score, prior)
        for steps in plan.drafts:
            looks = [Round(steps, len(seeds), after) for draft, after in inside if draft == steps]
            drafts = looks_of([*looks, Round(steps, len(seeds))])
            made = sampler.for_drafts(steps, plan.spacing)
            yield from make_drafts(made, seeds, drafts, cache=cache, decoder=plan.decoder)
        if rounds:
            yield from halving(rounds, decoder=plan.decoder)(sampler, score, seeds, top_k=top_k, prior=prior)
        else:
            yield from finish(sampler, score, seeds, prior)

    return search
