"""Exhaustive search: every candidate is finished with all steps and scored. The yardstick of every other strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from sp_rerank.sampling import Batch, Sampler


def exhaustive(
    sampler: Sampler, score: Callable[[Tensor], Tensor], seeds: Mapping[int, int], *, top_k: int
) -> Iterator[tuple[Batch, Tensor]]:
    """Make and score all of `seeds`, a batch at a time; `top_k` does not matter here.

    Args:
        sampler: makes the images.
        score: (b, 3, H, W) images in [0, 1] to (b,) scores, higher is better.
        seeds: index -> seed.
        top_k: how many will be kept.

    Yields:
        A batch and its scores, (b,) float32 on the CPU.
    """
    for batch in sampler.batches(seeds):
        yield batch, score(batch.images)
