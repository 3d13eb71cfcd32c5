"""Recording: every candidate at every draft and preview of a grid, and finished. What `sp-rerank plan` learns from."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING

from sp_rerank.search.halving import halving
from sp_rerank.search.screening import SOLVER, draft_name
from sp_rerank.search.strategy import Known, Scored, Strategy, scored

if TYPE_CHECKING:
    from torch import Tensor

    from sp_rerank.sampling import Sampler


def recording(drafts: Sequence[int], previews: Sequence[float]) -> Strategy:
    """The strategy with this grid; it spares nothing.

    Args:
        drafts: steps of each.
        previews: shares of the steps of the run itself.
    """

    def search(
        sampler: Sampler, score: Callable[[Tensor], Tensor], seeds: Mapping[int, int], *, top_k: int, known: Known
    ) -> Generator[Scored]:
        for steps in drafts:
            yield from scored(sampler.with_steps(steps, SOLVER), score, seeds, draft_name(steps), known)
        everybody = [(share, len(seeds)) for share in previews]
        yield from halving(everybody)(sampler, score, seeds, top_k=top_k, known=known)

    return search
