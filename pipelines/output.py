"""What a pipeline that chooses returns, and the candidates that it is made of. Knows nothing of how they were found."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput

from sp_rerank.diffusion.batches import Batch
from sp_rerank.storage.images import are_finite


@dataclass
class BestOfNPipelineOutput(StableDiffusionPipelineOutput):
    """What a call returns, best first, prompt by prompt: Stable Diffusion's own output, then ours.

    Attributes:
        images: n PIL images, or (n, H, W, 3) float in [0, 1], or (n, 3, H, W) float in [0, 1], as `output_type` asks.
        nsfw_content_detected: which of them the safety checker replaced by black; all False where there is none.
        scores: in the scorer's own scale; higher is better; comparable within one prompt only. NaN where an image is
            not usable (replaced, or not finite) and where nothing was compared (`num_candidates=1`).
        seeds: of the initial noise; None where an image did not have a generator of its own.
        indices: 0..num_candidates-1, the place among the candidates of its prompt.
    """

    scores: list[float]
    seeds: list[int | None]
    indices: list[int]


@dataclass(frozen=True, slots=True)
class Finished:
    """A candidate with its score, NaN where it is not usable, and its pixels, (3, H, W) in [0, 1]."""

    score: float
    index: int
    seed: int
    flagged: bool
    pixels: torch.Tensor


def output_of(found: Sequence[Finished], output_type: str | None) -> BestOfNPipelineOutput:
    """The candidates as a pipeline returns them."""
    images: Any = VaeImageProcessor().postprocess(
        torch.stack([candidate.pixels for candidate in found]),
        output_type=output_type or "pil",
        do_denormalize=[False] * len(found),  # they are in [0, 1] already
    )
    return BestOfNPipelineOutput(
        images=images,
        nsfw_content_detected=[candidate.flagged for candidate in found],
        scores=[candidate.score for candidate in found],
        seeds=[candidate.seed for candidate in found],
        indices=[candidate.index for candidate in found],
    )


def finished(batch: Batch, scores: torch.Tensor) -> list[Finished]:
    """The candidates of a batch. Their pixels are copied: a view would hold on to the whole batch."""
    finite = are_finite(batch.images).tolist()
    return [
        Finished(score if usable and not flagged else math.nan, index, seed, flagged, pixels.clone())
        for score, usable, flagged, index, seed, pixels in zip(
            scores.tolist(), finite, batch.flagged, batch.indices, batch.seeds, batch.images, strict=True
        )
    ]
