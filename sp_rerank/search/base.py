"""What every search strategy shares: its one signature, and what it hands back.

    strategy(sampler, score, seeds, *, top_k, prior) -> Iterator[Scored]

A strategy decides which candidates are worth their steps, and is asked for the whole run even when a part of it is
done: `prior` tells what need not be made or scored again. A candidate that never comes back finished was dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from sp_rerank.config import Stage
from sp_rerank.errors import UsageError
from sp_rerank.run.state import PriorScores
from sp_rerank.stats import ranking
from sp_rerank.storage.images import are_finite

if TYPE_CHECKING:
    from torch import Tensor

    from sp_rerank.diffusion.batches import Batch
    from sp_rerank.diffusion.sampler import Sampler

Score = Callable[["Tensor"], "Tensor"]
"""(b, 3, H, W) images in [0, 1] to (b,) scores, higher is better."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Candidates as they were seen at one stage.

    Attributes:
        batch: their images, and the evaluations of the denoiser that this stage took.
        scores: (b,) float32 on the CPU, higher is better.
        stage: Where in the search; None for finished candidates.
        total: how many candidates this stage will have seen in the end.
    """

    batch: Batch
    scores: Tensor
    stage: Stage | None
    total: int


class Strategy(Protocol):
    """How the budget for N candidates is spent."""

    def __call__(
        self, sampler: Sampler, score: Score, seeds: Mapping[int, int], *, top_k: int, prior: PriorScores
    ) -> Generator[Scored]:
        """Make and score candidates; closed early, it leaves nothing running.

        Args:
            sampler: makes the images.
            score: Scores a batch of images.
            seeds: index -> seed, of the whole run.
            top_k: how many will be kept.
            prior: Scores that an interrupted run holds already.

        Raises:
            UsageError: if a stage keeps fewer than `top_k`.
        """
        ...


def finish(sampler: Sampler, score: Score, seeds: Mapping[int, int], prior: PriorScores) -> Iterator[Scored]:
    """Make the candidates of `seeds` with all steps, those of known batches left out."""
    yield from score_batches(sampler, score, seeds, None, prior)


def score_batches(
    sampler: Sampler, score: Score, seeds: Mapping[int, int], stage: Stage | None, prior: PriorScores
) -> Iterator[Scored]:
    """Make and score the candidates of `seeds` a batch at a time, those of batches that a stage knows left out."""
    for batch in sampler.batches(seeds, done=prior.get(stage, {})):
        yield Scored(batch, score(batch.images), stage, len(seeds))


def best_of(scores: Mapping[int, float], keep: int) -> list[int]:
    """The indices of the `keep` highest scores, rising; what is not finite comes last, ties go to the lower index."""
    indices = sorted(scores)
    order = ranking.order([scores[index] for index in indices])
    return sorted(indices[place] for place in order[:keep])


def usable_scores(scored: Scored) -> dict[int, float]:
    """The scores of what was seen, by index; NaN where the pixels are not finite or the safety checker's."""
    sound = listed(are_finite(scored.batch.images))
    usable = [fine and not flagged for fine, flagged in zip(sound, scored.batch.flagged, strict=True)]
    values = listed(scored.scores)
    scores = [score if good else math.nan for score, good in zip(values, usable, strict=True)]
    return dict(zip(scored.batch.indices, scores, strict=True))


def listed(values: Tensor) -> list[Any]:
    """A tensor as a list."""
    return cast("Any", values).tolist()  # torch does not type it


def check_keeps(keeps: Iterable[int], top_k: int, n: int) -> None:
    """Refuse stages that leave fewer than the best k, or more than came in.

    Raises:
        UsageError: naming the stage.
    """
    before = n
    for number, keep in enumerate(keeps, start=1):
        if keep < top_k:
            raise UsageError(f"stage {number} of the search keeps {keep}, fewer than the best {top_k}; keep more there")
        if keep > before:
            raise UsageError(f"stage {number} of the search keeps {keep} of {before}; expected at most as many")
        before = keep
