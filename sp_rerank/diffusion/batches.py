"""Images that were made together, read from what a pipeline returns. Knows nothing of how they are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Images that were made together.

    Attributes:
        indices: Indices of the candidates.
        seeds: Seeds of their noise.
        images: (b, 3, H, W) float in [0, 1] on the pipeline's device, or on the CPU where it gives arrays; not finite
            where the model broke down.
        flagged: Which of them the safety checker replaced.
        nfe: Number of function evaluations: denoiser calls that each of them took; a call for both halves of guidance
            counts as one.
        of_call: Number of images of the call, where images of other prompts were made in it; 0 where these are all.
    """

    indices: tuple[int, ...]
    seeds: tuple[int, ...]
    images: Tensor
    flagged: tuple[bool, ...]
    nfe: int
    of_call: int = 0

    @property
    def batch_size(self) -> int:
        """Number of images of the call that made these."""
        return self.of_call or len(self.indices)


def batch_of(output: Any, indices: Sequence[int], seeds: Sequence[int], nfe: int) -> Batch:
    """What a pipeline returned, as a batch; images behind those of the seeds only filled it."""
    images = output.images
    if not isinstance(images, torch.Tensor):
        images = torch.from_numpy(images).permute(0, 3, 1, 2)
    return Batch(tuple(indices), tuple(seeds), images[: len(seeds)], flags_of(output, len(seeds)), nfe)


def flags_of(output: Any, count: int) -> tuple[bool, ...]:
    """Which of `count` images the safety checker of a pipeline replaced, as its output says under either name."""
    flagged = getattr(output, "nsfw_content_detected", None) or getattr(output, "nsfw_detected", None)
    return tuple(map(bool, flagged))[:count] if flagged else (False,) * count
