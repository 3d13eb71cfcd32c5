"""Recording: every candidate at every draft and preview of a grid, and finished. What `sp-rerank plan` learns from."""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING

from sp_rerank.config import Stage
from sp_rerank.diffusion.watchable import check_watchable
from sp_rerank.errors import UsageError
from sp_rerank.run.state import PriorScores
from sp_rerank.search.base import Score, Scored, Strategy, finish, score_batches
from sp_rerank.search.halving import halving
from sp_rerank.search.screening import SOLVER

if TYPE_CHECKING:
    from sp_rerank.diffusion.sampler import Sampler

log = logging.getLogger(__name__)


def recording(drafts: Sequence[int], previews: Sequence[float], decoder: str | None = None) -> Strategy:
    """The strategy with this grid; it spares nothing.

    Args:
        drafts: steps of each.
        previews: shares of the steps of the run itself.
        decoder: of the previews, as for `halving`.
    """

    def search(
        sampler: Sampler, score: Score, seeds: Mapping[int, int], *, top_k: int, prior: PriorScores
    ) -> Generator[Scored]:
        rounds = [(share, len(seeds)) for share in previews]
        try:
            check_watchable(sampler)
        except UsageError as error:
            log.warning("only drafts are recorded: %s", error)
            rounds = []
        for steps in drafts:
            yield from score_batches(sampler.with_steps(steps, SOLVER), score, seeds, Stage("draft", steps), prior)
        if rounds:
            yield from halving(rounds, decoder=decoder)(sampler, score, seeds, top_k=top_k, prior=prior)
        else:
            yield from finish(sampler, score, seeds, prior)

    return search
