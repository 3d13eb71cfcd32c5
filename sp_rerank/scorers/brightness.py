"""A scorer without a model: the mean brightness of the image. The public test double.

It ranks visibly (the lightest image wins), exactly and at once, so that whatever uses a scorer can be tested and tried
without weights. It ignores the prompt and says nothing about quality.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sp_rerank.errors import UsageError
from sp_rerank.storage.images import bands, seen_rgb


class BrightnessScorer:
    """Scores an image by the mean of all its values, in [0, 1].

    >>> BrightnessScorer().score("anything", torch.tensor([0.25, 0.75])[:, None, None, None].expand(2, 3, 8, 8))
    tensor([0.2500, 0.7500])
    """

    name = "brightness"

    def score(self, prompt: str | Sequence[str], images: Tensor | Sequence[Image.Image]) -> Tensor:
        """(n,) float32 on the CPU; NaN for an image with a NaN. Arguments as in `sp_rerank.types.Scorer`.

        Raises:
            UsageError: if there are neither one nor n prompts.
        """
        if not isinstance(prompt, str) and len(prompt) != len(images):
            raise UsageError(f"expected one prompt, or one an image: got {len(prompt)} prompts, {len(images)} images")
        if isinstance(images, Tensor):
            return images.detach().float().flatten(1).mean(dim=1).cpu()
        return torch.tensor([_mean(seen_rgb(image)) / 255 for image in images], dtype=torch.float32)


def _mean(image: Image.Image) -> float:
    """Of all values of an RGB image, 0..255."""
    return sum(int(np.asarray(band).sum(dtype=np.uint64)) for band, _ in bands(image)) / (
        3 * image.width * image.height
    )
