"""Halving: previews of x_0 on one trajectory; the weak candidates are dropped from their batch on the way.

After successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943), with the model's prediction of the finished
image in place of a partial result. The survivors go on in the same trajectory, so they are the images that an
exhaustive search makes of the same seeds, up to what a machine rounds otherwise in a smaller batch.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from sp_rerank.config import Stage
from sp_rerank.diffusion.previews import Previews
from sp_rerank.diffusion.trajectory import open_trajectories
from sp_rerank.diffusion.watchable import check_watchable
from sp_rerank.run.state import PriorScores
from sp_rerank.search.base import Score, Scored, Strategy, best_of, check_keeps
from sp_rerank.search.score_cache import ScoreCache, preview, retry_on_oom, watched_steps

if TYPE_CHECKING:
    from sp_rerank.diffusion.sampler import Sampler
    from sp_rerank.diffusion.trajectory import Trajectory


def halving(rounds: Sequence[tuple[float, int]], *, decoder: str | None = None) -> Strategy:
    """The strategy with these rounds.

    Args:
        rounds: the share of the steps after which previews are looked at, and how many candidates go on from there,
            one a round.
        decoder: makes the previews' pixels, by the name that `previews.find_decoder` gives; the pipeline's own
            autoencoder where None.

    Raises:
        UsageError: once it runs, if a round keeps fewer than `top_k` or more than came in, if two rounds fall on one
            step, or if the pipeline cannot be watched.
    """

    def search(
        sampler: Sampler, score: Score, seeds: Mapping[int, int], *, top_k: int, prior: PriorScores
    ) -> Generator[Scored]:
        check_watchable(sampler)
        check_keeps([keep for _, keep in rounds], top_k, len(seeds))
        steps, watched = sampler.steps, watched_steps(sampler, [share for share, _ in rounds])
        previews = Previews(sampler.pipe, decoder, **sampler.size)
        cache = ScoreCache(score, prior)

        def attempt() -> Iterator[Scored]:
            with open_trajectories(sampler, seeds, watched) as trajectories:
                for number, (_, keep) in enumerate(rounds):
                    stage, left = Stage("preview", watched[number], steps), _left(trajectories)
                    for trajectory in trajectories:
                        if cache.missing(stage, trajectory.indices):
                            batch = preview(trajectory, trajectory.advance_to(number), previews, seeds)
                            yield cache.add(batch, stage, len(left))
                    _drop(trajectories, number, cache.scores(stage, left), keep)
                total = len(_left(trajectories))
                for trajectory in trajectories:
                    if cache.missing(None, trajectory.indices):
                        yield cache.add(trajectory.finish(), None, total)

        yield from retry_on_oom(sampler, seeds, attempt)

    return search


def _left(trajectories: Sequence[Trajectory]) -> list[int]:
    return [index for trajectory in trajectories for index in trajectory.indices]


def _drop(trajectories: Sequence[Trajectory], number: int, scores: Mapping[int, float], keep: int) -> None:
    """Cut every batch to its candidates among the best; a batch with none of them ends."""
    best = set(best_of(scores, keep))
    for trajectory in trajectories:
        kept = [place for place, index in enumerate(trajectory.indices) if index in best]
        if len(kept) < len(trajectory.indices):
            trajectory.prune(number, kept)
