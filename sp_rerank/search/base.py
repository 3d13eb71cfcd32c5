"""What every search strategy shares: its one signature, and what it hands back.

    strategy(sampler, score, seeds, *, top_k, known) -> Iterator[Scored]

A strategy decides which candidates are worth their steps, and is asked for the whole run even when a part of it is
done: `known` tells what need not be made or scored again. A candidate that never comes back finished was dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sp_rerank.errors import UsageError
from sp_rerank.stats import ranking

if TYPE_CHECKING:
    from torch import Tensor

    from sp_rerank.diffusion.sampler import Batch, Sampler

Known = Mapping[str | None, Mapping[int, float]]
"""Scores by stage and index, NaN where one is not finite; the stage None holds the finished candidates."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Candidates as they were seen at one stage.

    Attributes:
        batch: their images, and the evaluations of the denoiser that this stage took.
        scores: (b,) float32 on the CPU, higher is better.
        stage: what was seen, such as "draft, 8 steps"; None if they are finished.
        total: how many candidates this stage will have seen in the end.
    """

    batch: Batch
    scores: Tensor
    stage: str | None
    total: int


class Strategy(Protocol):
    """How the budget for N candidates is spent."""

    def __call__(
        self, sampler: Sampler, score: Callable[[Tensor], Tensor], seeds: Mapping[int, int], *, top_k: int, known: Known
    ) -> Generator[Scored]:
        """Make and score candidates; closed early, it leaves nothing running.

        Args:
            sampler: makes the images.
            score: (b, 3, H, W) images in [0, 1] to (b,) scores, higher is better.
            seeds: index -> seed, of the whole run.
            top_k: how many will be kept.
            known: what an interrupted run knows already.

        Raises:
            UsageError: if a stage keeps fewer than `top_k`.
        """
        ...


def finish(
    sampler: Sampler, score: Callable[[Tensor], Tensor], seeds: Mapping[int, int], known: Known
) -> Iterator[Scored]:
    """Make the candidates of `seeds` with all steps, those of known batches left out."""
    yield from scored(sampler, score, seeds, None, known)


def scored(
    sampler: Sampler, score: Callable[[Tensor], Tensor], seeds: Mapping[int, int], stage: str | None, known: Known
) -> Iterator[Scored]:
    """Make and score the candidates of `seeds` a batch at a time, those of batches that a stage knows left out."""
    for batch in sampler.batches(seeds, done=known.get(stage, {})):
        yield Scored(batch, score(batch.images), stage, len(seeds))


def best_of(scores: Mapping[int, float], keep: int) -> list[int]:
    """The indices of the `keep` highest scores, rising; what is not finite comes last, ties go to the lower index."""
    indices = sorted(scores)
    order = ranking.order([scores[index] for index in indices])
    return sorted(indices[place] for place in order[:keep])


def usable_scores(one: Scored) -> dict[int, float]:
    """The scores of what was seen, by index; NaN where the pixels are not finite or the safety checker's."""
    sound = one.batch.images.flatten(1).isfinite().all(dim=1).tolist()
    usable = [fine and not flagged for fine, flagged in zip(sound, one.batch.flagged, strict=True)]
    scores = [score if good else math.nan for score, good in zip(one.scores.tolist(), usable, strict=True)]
    return dict(zip(one.batch.indices, scores, strict=True))


def check_keeps(keeps: Iterable[int], top_k: int, n: int) -> None:
    """Refuse stages that leave fewer than the best k, or more than came in.

    Raises:
        UsageError: naming the stage.
    """
    before = n
    for number, keep in enumerate(keeps, start=1):
        if keep < top_k:
            raise UsageError(f"stage {number} of the search keeps {keep}, fewer than --top-k {top_k}; keep more there")
        if keep > before:
            raise UsageError(f"stage {number} of the search keeps {keep} of {before}; expected at most as many")
        before = keep
