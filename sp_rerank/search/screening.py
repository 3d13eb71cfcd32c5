"""Screening: drafts of few steps from every candidate's own noise, more steps for those that look best.

A few-step solver follows the same ordinary differential equation from the same noise, so its image is a coarse version
of the one that all steps would make; a preview of x0 on the way is a blur by comparison. A draft may be looked into on
its own way too, and the weak ones cut there: those that are left go on in the same draft. The finalists are made by the
run's own scheduler with the run's own steps from their seeds, so they are the images of an exhaustive search.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from sp_rerank.config import Round, Stage
from sp_rerank.config.search_plan import only
from sp_rerank.diffusion.compiling import is_compiled
from sp_rerank.diffusion.previews import Previews
from sp_rerank.diffusion.watchable import check_watchable
from sp_rerank.errors import UnwatchableError
from sp_rerank.run.state import PriorScores
from sp_rerank.search.base import Score, Scored, Strategy, best_of, check_keeps, finish
from sp_rerank.search.cutting import Look, follow
from sp_rerank.search.score_cache import ScoreCache, weights_of

if TYPE_CHECKING:
    from sp_rerank.diffusion.sampler import Sampler

log = logging.getLogger(__name__)


def screening(rounds: Sequence[Round], *, spacing: float | None = None, decoder: str | None = None) -> Strategy:
    """The strategy with these rounds.

    Args:
        rounds: Steps of the drafts, on the way of them or complete, and how many candidates go on from there. Rounds of
            as many steps that follow one another are looks at one draft.
        spacing: Exponent of the drafts' time steps, as in `sp_rerank.diffusion.spacing`; None for the scheduler's own.
        decoder: Of what is seen inside a draft, as for `halving`.

    Raises:
        UsageError: Once it runs, if a round keeps fewer than `top_k` or more than came in, or if the pipeline takes no
            time steps. A pipeline that cannot be looked into on its way makes each draft to its end, and a log warning
            says so; a compiled one does so silently.
    """

    def search(
        sampler: Sampler, score: Score, seeds: Mapping[int, int], *, top_k: int, prior: PriorScores
    ) -> Generator[Scored]:
        check_keeps([entry.keep for entry in rounds], top_k, len(seeds))
        if draws_noise(sampler.scheduler):
            log.warning(
                "%s draws noise at every step, which no draft can foresee: drafts tell less; one that draws none, such "
                "as DPMSolverMultistep, suits this search", type(sampler.scheduler).__name__,
            )  # fmt: skip
        cache, left = ScoreCache(score, prior), dict(seeds)

        def screened(rounds: Sequence[Round]) -> Generator[Scored]:
            nonlocal left
            left = dict(seeds)
            for steps, looks in groupby(looks_of(rounds), key=_steps_of):
                drafts = list(looks)
                yield from make_drafts(sampler.for_drafts(steps, spacing), left, drafts, cache=cache, decoder=decoder)
                for look in drafts:
                    scores = cache.weighed(look.judged_by, list(left))
                    left = {index: seeds[index] for index in best_of(scores, look.keep)}

        try:
            # a compiled denoiser would be compiled anew for each size that a cut leaves of a batch
            yield from screened(completed(rounds) if is_compiled(sampler.pipe) else rounds)
        except UnwatchableError as error:
            log.warning("every draft is made to its end: %s", str(error).partition(";")[0])
            yield from screened(completed(rounds))
        yield from finish(sampler, score, left, prior)

    return search


def completed(rounds: Sequence[Round]) -> tuple[Round, ...]:
    """The rounds without looks inside drafts: each draft is made to its end, and its last round decides there."""
    later = [*rounds[1:], None]
    last = [then is None or then.at != entry.at for entry, then in zip(rounds, later, strict=True)]
    return tuple(entry._replace(after=None) for entry in only(rounds, last))


def looks_of(rounds: Sequence[Round]) -> list[Look]:
    """The looks at drafts that rounds are."""
    stages = [
        Stage("draft", int(entry.at)) if entry.after is None else Stage("draft", entry.after, int(entry.at))
        for entry in rounds
    ]
    return [
        Look(stages[number], entry.after, entry.keep, weights_of(entry, stages[: number + 1]))
        for number, entry in enumerate(rounds)
    ]


def make_drafts(
    sampler: Sampler, seeds: Mapping[int, int], looks: Sequence[Look], *, cache: ScoreCache, decoder: str | None
) -> Iterator[Scored]:
    """Make drafts and score them at some steps and at their end, those that are cut on the way left out.

    Args:
        sampler: Of the drafts.
        seeds: index -> seed.
        looks: In the order of their steps, the last perhaps at the end.
        cache: The scores of the run.
        decoder: As for `screening`.
    """
    if any(look.step for look in looks):
        check_watchable(sampler)
        yield from follow(sampler, seeds, looks, cache=cache, previews=Previews(sampler.pipe, decoder, **sampler.size))
        return
    for look in looks:  # a complete draft needs no pipeline that can be watched
        for batch in sampler.batches(seeds, done=cache.known(look.stage)):
            yield cache.add(batch, look.stage, len(seeds))


def _steps_of(look: Look) -> int:
    assert look.stage
    return look.stage.of or look.stage.at


def draws_noise(scheduler: Any) -> bool:
    """Whether a scheduler of diffusers draws noise on the way, as far as its name and options tell."""
    config = getattr(scheduler, "config", {})
    return "sde" in str(config.get("algorithm_type", "")) or any(
        mark in type(scheduler).__name__ for mark in ("Ancestral", "DDPM", "SDE", "LCM", "TCD")
    )
