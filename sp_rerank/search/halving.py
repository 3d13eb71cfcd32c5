"""Halving: previews of x_0 on one trajectory; the weak candidates are dropped from their batch on the way.

After successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943), with the model's prediction of the finished
image in place of a partial result. The survivors go on in the same trajectory, so they are the images that an
exhaustive search makes of the same seeds, up to what a machine rounds otherwise in a smaller batch.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING

from sp_rerank.config import Round, Stage
from sp_rerank.diffusion.previews import Previews
from sp_rerank.diffusion.watchable import check_watchable
from sp_rerank.run.state import PriorScores
from sp_rerank.search.base import Score, Scored, Strategy, check_keeps
from sp_rerank.search.cutting import Look, follow
from sp_rerank.search.score_cache import ScoreCache, watched_steps, weights_of

if TYPE_CHECKING:
    from sp_rerank.diffusion.sampler import Sampler


def halving(rounds: Sequence[Round], *, decoder: str | None = None) -> Strategy:
    """The strategy with these rounds.

    Args:
        rounds: The share of the steps after which previews are looked at, and how many candidates go on from there,
            one a round.
        decoder: Makes the previews' pixels, by the name that `previews.find_decoder` gives; the pipeline's own
            autoencoder where None.

    Raises:
        UsageError: Once it runs, if a round keeps fewer than `top_k` or more than came in, if two rounds fall on one
            step, or if the pipeline cannot be watched.
    """

    def search(
        sampler: Sampler, score: Score, seeds: Mapping[int, int], *, top_k: int, prior: PriorScores
    ) -> Generator[Scored]:
        check_watchable(sampler)
        check_keeps([entry.keep for entry in rounds], top_k, len(seeds))
        watched = watched_steps(sampler, [entry.at for entry in rounds])
        stages = [Stage("preview", step, sampler.steps) for step in watched]
        looks = [
            Look(stage, stage.at, entry.keep, weights_of(entry, stages[:number]))
            for number, (entry, stage) in enumerate(zip(rounds, stages, strict=True), start=1)
        ]
        previews = Previews(sampler.pipe, decoder, **sampler.size)
        yield from follow(sampler, seeds, [*looks, Look(None)], cache=ScoreCache(score, prior), previews=previews)

    return search
