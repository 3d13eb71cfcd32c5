"""Halving: previews of x_0 on one trajectory; the weak candidates are dropped from their batch on the way.

After successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943), with the model's prediction of the finished
image in place of a partial result. The survivors go on in the same trajectory, so they are the images that an
exhaustive search makes of the same seeds, up to what a machine rounds otherwise in a smaller batch.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from sp_rerank.diffusion.previews import Previews
from sp_rerank.diffusion.trajectory import check_watchable, open_trajectories
from sp_rerank.search.base import Known, Scored, Strategy, best_of, check_keeps
from sp_rerank.search.score_cache import Seen, preview, preview_name, watched_steps, within_memory
from sp_rerank.stats import ranking

if TYPE_CHECKING:
    from torch import Tensor

    from sp_rerank.diffusion.sampler import Sampler
    from sp_rerank.diffusion.trajectory import Trajectory


def halving(
    rounds: Sequence[tuple[float, int]], *, decoder: str | None = None, buckets: Sequence[int] = ()
) -> Strategy:
    """The strategy with these rounds.

    Args:
        rounds: the share of the steps after which previews are looked at, and how many candidates go on from there,
            one a round.
        decoder: makes the previews' pixels, by the name that `previews.find_decoder` gives; the pipeline's own
            autoencoder where None.
        buckets: sizes to which the survivors of a batch are rounded up by its next best ones, such as (1, 2, 4, 8, 16),
            so that a compiled denoiser meets few sizes; they stay as they come where it is empty.

    Raises:
        UsageError: once it runs, if a round keeps fewer than `top_k` or more than came in, if two rounds fall on one
            step, or if the pipeline cannot be watched.
    """

    def search(
        sampler: Sampler, score: Callable[[Tensor], Tensor], seeds: Mapping[int, int], *, top_k: int, known: Known
    ) -> Generator[Scored]:
        check_watchable(sampler)
        check_keeps([keep for _, keep in rounds], top_k, len(seeds))
        steps, watched = sampler.steps, watched_steps(sampler, [share for share, _ in rounds])
        previews = Previews(sampler.pipe, decoder, **sampler.size)
        seen = Seen(score, known)

        def attempt() -> Iterator[Scored]:
            with open_trajectories(sampler, seeds, watched) as trajectories:
                for number, (_, keep) in enumerate(rounds):
                    stage, left = preview_name(watched[number], steps), _left(trajectories)
                    for trajectory in trajectories:
                        if seen.lacks(stage, trajectory.indices):
                            batch = preview(trajectory, trajectory.advance_to(number), previews, seeds)
                            yield seen.add(batch, stage, len(left))
                    _drop(trajectories, number, seen.scores(stage, left), keep, buckets)
                total = len(_left(trajectories))
                for trajectory in trajectories:
                    if seen.lacks(None, trajectory.indices):
                        yield seen.add(trajectory.finish(), None, total)

        yield from within_memory(sampler, seeds, attempt)

    return search


def _left(trajectories: Sequence[Trajectory]) -> list[int]:
    return [index for trajectory in trajectories for index in trajectory.indices]


def _drop(
    trajectories: Sequence[Trajectory], number: int, scores: Mapping[int, float], keep: int, buckets: Sequence[int]
) -> None:
    """Cut every batch to its share of the best, rounded up to a bucket; one with none of them ends."""
    best = set(best_of(scores, keep))
    for trajectory in trajectories:
        mine = trajectory.indices
        wanted = sum(index in best for index in mine)
        size = min((size for size in buckets if size >= wanted), default=wanted) if wanted else 0
        if size < len(mine):
            order = ranking.order([scores[index] for index in mine])
            trajectory.prune(number, sorted(order[:size]))
