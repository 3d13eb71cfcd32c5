"""Exhaustive search: every candidate is finished with all steps and scored. The yardstick of every other strategy."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING

from sp_rerank.run.state import PriorScores
from sp_rerank.search.base import Score, Scored, finish

if TYPE_CHECKING:
    from sp_rerank.diffusion.sampler import Sampler


def exhaustive(
    sampler: Sampler, score: Score, seeds: Mapping[int, int], *, top_k: int, prior: PriorScores
) -> Generator[Scored]:
    """Make and score all of `seeds`, a batch at a time; `top_k` does not matter here. See `Strategy`."""
    yield from finish(sampler, score, seeds, prior)
