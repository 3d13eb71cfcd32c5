"""Steering: Feynman-Kac resampling on previews of x_0. It makes other images than the seeds alone would.

FK steering with the difference potential (Singhal et al. 2025, "A General Framework for Inference-time Scaling and
Steering of Diffusion Models", arXiv 2501.06848, section 3), its intermediate reward taken at the denoised state:

    G_t = exp(lambda (r(x0_t) - r(x0_s)))     s: the watched step before; r = 0 before the first

The product over a lineage telescopes to exp(lambda r), so particles are drawn towards p(x) exp(lambda r(x)). A batch is
one system of particles: it depends on no other batch, and is made again as it was. A copy goes on with noise of its
own, so only a scheduler that draws noise on the way can tell it from its ancestor. An image keeps the index and the
seed of its place in the batch, but that seed alone does not make it again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from sp_rerank.config import Stage
from sp_rerank.diffusion.previews import Previews
from sp_rerank.diffusion.trajectory import open_trajectories
from sp_rerank.diffusion.watchable import check_watchable
from sp_rerank.errors import UsageError
from sp_rerank.run.state import PriorScores
from sp_rerank.search.base import Score, Scored, Strategy
from sp_rerank.search.score_cache import ScoreCache, preview, retry_on_oom, watched_steps

if TYPE_CHECKING:
    from sp_rerank.diffusion.sampler import Sampler
    from sp_rerank.diffusion.trajectory import Trajectory

SHARES = (0.2, 0.4, 0.6, 0.8)
STRENGTH = 2.0
"""Lambda, in units of the spread of the scores at the first of SHARES: scorers differ in scale."""


def steering(decoder: str | None = None) -> Strategy:
    """The strategy, with resampling after SHARES of the steps.

    Args:
        decoder: Makes the previews' pixels, by the name that `previews.find_decoder` gives; the pipeline's own
            autoencoder where None.

    Raises:
        UsageError: Once it runs, if the scheduler draws no noise on the way, if two shares fall on one step, or if the
            pipeline cannot be watched.
    """

    def search(
        sampler: Sampler, score: Score, seeds: Mapping[int, int], *, top_k: int, prior: PriorScores
    ) -> Generator[Scored]:
        check_watchable(sampler)
        steps, watched = sampler.steps, watched_steps(sampler, SHARES)
        previews = Previews(sampler.pipe, decoder, **sampler.size)
        cache, blocks = ScoreCache(score, prior), sampler.blocks(seeds)

        def steered(trajectory: Trajectory) -> Iterator[Scored]:
            rewards, scale = [0.0] * len(trajectory.indices), None
            for number, step in enumerate(watched):
                view = trajectory.advance_to(number)
                _check_stochastic(sampler, view.stochastic)
                stage = Stage("preview", step, steps)
                yield cache.add(preview(trajectory, view, previews, seeds), stage, len(seeds))
                before, rewards = rewards, list(cache.scores(stage, trajectory.indices).values())
                scale = STRENGTH / _spread(rewards) if scale is None else scale
                gains = [scale * (now - then) for now, then in zip(rewards, before, strict=True)]
                ancestors = resampled(gains, random.Random(f"{seeds[trajectory.indices[0]]} {step}").random())
                trajectory.resample(number, ancestors)
                rewards = [rewards[ancestor] for ancestor in ancestors]
            yield cache.add(trajectory.finish(), None, len(seeds))

        def attempt() -> Iterator[Scored]:
            if sampler.blocks(seeds) != blocks:
                cache.forget()  # memory ran out: smaller batches are other systems of particles
            with open_trajectories(sampler, seeds, watched) as trajectories:
                for trajectory in trajectories:
                    if cache.missing(None, trajectory.indices):
                        yield from steered(trajectory)

        yield from retry_on_oom(sampler, seeds, attempt)

    return search


def resampled(log_weights: Sequence[float], offset: float) -> list[int]:
    """Systematic resampling: how often each place is taken differs from its expectation by less than one.

    A place that is taken keeps itself; its further copies fill the places that are not, in order. Weights that are not
    finite count as zero; if none is finite, every place stays.

    Args:
        log_weights: of the places, up to a constant.
        offset: uniform in [0, 1).

    Returns:
        For each place the one that it goes on from.

    Source: Douc and Cappe 2005, "Comparison of Resampling Schemes for Particle Filtering".
    """
    finite = [weight for weight in log_weights if math.isfinite(weight)]
    if not finite:
        return list(range(len(log_weights)))
    highest = max(finite)
    weights = [math.exp(weight - highest) if math.isfinite(weight) else 0.0 for weight in log_weights]
    unit, total, taken = sum(weights) / len(weights), 0.0, 0
    copies: list[int] = []
    ancestors = list(range(len(weights)))
    empty: list[int] = []
    for place, weight in enumerate(weights):
        total += weight
        times = max(0, math.ceil(round(total / unit - offset, 9)) - taken)
        taken += times
        copies += [place] * (times - 1)
        empty += [] if times else [place]
    for place, ancestor in zip(empty, copies, strict=True):
        ancestors[place] = ancestor
    return ancestors


def _spread(rewards: Sequence[float]) -> float:
    """The standard deviation of the finite ones; 1 where they are all the same."""
    finite = [reward for reward in rewards if math.isfinite(reward)]
    mean = sum(finite) / max(1, len(finite))
    return math.sqrt(sum((reward - mean) ** 2 for reward in finite) / max(1, len(finite))) or 1.0


def _check_stochastic(sampler: Sampler, stochastic: bool) -> None:
    if not stochastic:
        name = type(sampler.scheduler).__name__
        raise UsageError(
            f"{name} as it is set draws no noise on the way, so copies of a candidate would stay copies; expected a "
            "stochastic one such as EulerAncestralDiscrete or DDPM, or another search"
        )
