"""The node "Best of images": images, prompt, scorer, k -> the k best images and their scores, the best first.

Put it behind VAE Decode with a batch of latents. ComfyUI hands images over as (b, h, w, c) float tensors in [0, 1]; the
scorer gets them as (b, 3, h, w). The protocol of a node is ComfyUI's own (docs.comfy.org, custom nodes): INPUT_TYPES,
RETURN_TYPES, FUNCTION, CATEGORY. Imports nothing of ComfyUI.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from sp_rerank import NothingUsableError, Scorer, UsageError, load_scorer
from sp_rerank.diffusion.loading import find_device
from sp_rerank.scorers import available_scorers
from sp_rerank.scorers.scoring import score_images
from sp_rerank.stats.ranking import order

if TYPE_CHECKING:
    from torch import Tensor

AT_ONCE = 8
"""Images that are scored together."""


@lru_cache(maxsize=1)
def scorer_of(spec: str) -> Scorer:
    """The scorer of the last run, kept loaded; another one takes its place."""
    return load_scorer(spec, device=find_device())


class BestOfImages:
    """Keeps the images that a model of human preference ranks highest."""

    CATEGORY = "image/selection"
    FUNCTION = "best"
    RETURN_TYPES = ("IMAGE", "FLOAT")
    RETURN_NAMES = ("images", "scores")
    OUTPUT_IS_LIST = (False, True)
    DESCRIPTION = "The k best of a batch of images for a prompt, the best first, with their scores."
    SEARCH_ALIASES: ClassVar[list[str]] = ["best of n", "rerank", "human preference", "hps", "pickscore"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, tuple[Any, ...]]]:  # noqa: N802  # ComfyUI's name
        names = [entry.name for entry in available_scorers()]
        default = "hps-v2.1" if "hps-v2.1" in names else names[0]
        return {
            "required": {
                "images": ("IMAGE",),
                "prompt": ("STRING", {"multiline": True, "default": ""}),
                "scorer": (names, {"default": default}),
                "k": ("INT", {"default": 1, "min": 1, "max": 4096}),
            }
        }

    def best(self, images: Tensor, prompt: str, scorer: str, k: int) -> tuple[Tensor, list[float]]:
        """The k best.

        Args:
            images: (b, h, w, c) float in [0, 1]; of four channels the last, alpha, is laid on white.
            prompt: What they should show.
            scorer: A name of `sp-rerank scorers`.
            k: How many to keep; all, in order, where there are fewer.

        Returns:
            (k, h, w, c) of the same images, untouched, and k scores in the scorer's own scale.
        """
        if images.ndim != 4 or images.shape[-1] not in (3, 4) or not len(images):
            raise UsageError(f"images are {tuple(images.shape)}; expected (b, h, w, 3) or (b, h, w, 4)")
        if not prompt.strip():
            raise UsageError("the prompt is empty; expected words that say what the images should show")
        model = scorer_of(scorer)
        scores = [score for part in images.split(AT_ONCE) for score in score_images(model, prompt, _planes(part))]
        best = [place for place in order(scores) if math.isfinite(scores[place])][:k]
        if not best:
            raise NothingUsableError(f"{model.name} gives no finite score for any of {len(images)} images")
        return images[best], [scores[place] for place in best]


def _planes(images: Tensor) -> Tensor:
    """(b, h, w, c) to (b, 3, h, w) in [0, 1]."""
    planes = images.float().clamp(0, 1).permute(0, 3, 1, 2)
    if planes.shape[1] == 3:
        return planes
    alpha = planes[:, 3:]
    return planes[:, :3] * alpha + (1 - alpha)


NODE_CLASS_MAPPINGS = {"SPRerankBestOfImages": BestOfImages}
NODE_DISPLAY_NAME_MAPPINGS = {"SPRerankBestOfImages": "Best of images (sp-rerank)"}
