"""Score and keep the best, as a block of Modular Diffusers: it stands behind whatever block makes images.

Knows blocks and their state. Knows nothing of how images are made or what a score is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.modular_pipelines import ModularPipelineBlocks, PipelineState
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam, OutputParam

from sp_rerank.errors import UsageError
from sp_rerank.scorers.scoring import score_images
from sp_rerank.stats.ranking import order


class KeepBestStep(ModularPipelineBlocks):
    """Ranks the images of a state for its prompt and keeps the best of each prompt, best first.

    Its component `scorer` is any Scorer: `pipeline.update_components(scorer=load_scorer("clip-mini"))`. It reads
    `images` (PIL images, or an array (n, H, W, 3) or a tensor (n, 3, H, W) in [0, 1]), `prompt` and `top_k`; it writes
    `images`, in the form in which it got them, `scores` (in the scorer's own scale; NaN where an image or its score is
    not finite) and `indices` (places among the images that it got).

    Example:
        >>> blocks = SequentialPipelineBlocks.from_blocks_dict({"images": making_blocks, "best": KeepBestStep()})
        >>> pipeline = blocks.init_pipeline()
    """

    model_name = "sp-rerank"

    @property
    def description(self) -> str:
        """What the block does, for the pages that Modular Diffusers writes."""
        return "Scores the images for their prompt with a model of human preference and keeps the best, best first"

    @property
    def expected_components(self) -> list[ComponentSpec]:
        """The scorer."""
        return [ComponentSpec("scorer", None, description="A Scorer of sp_rerank, or any object with its two members")]

    @property
    def inputs(self) -> list[InputParam]:
        """What is read of the state."""
        return [
            InputParam("images", required=True, description="The candidates, prompt by prompt"),
            InputParam("prompt", required=True, type_hint=str | list[str], description="What they should show"),
            InputParam("top_k", default=1, type_hint=int, description="How many are kept for each prompt"),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """What is written into the state."""
        return [
            OutputParam("images", description="The best images, best first, prompt by prompt"),
            OutputParam("scores", type_hint=list[float], description="Their scores; higher is better"),
            OutputParam("indices", type_hint=list[int], description="Their places among the candidates"),
        ]

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        """Rank, and keep the best.

        Raises:
            UsageError: If there is no scorer, or the images are not as many for each prompt, or fewer than are kept.
        """
        block: Any = self.get_block_state(state)
        prompts = [block.prompt] if isinstance(block.prompt, str) else list(block.prompt)
        each = _images_per_prompt(len(block.images), len(prompts), block.top_k)
        scorer = getattr(components, "scorer", None)
        if scorer is None:
            raise UsageError(
                "the block has no scorer to choose with; pass one: "
                'pipeline.update_components(scorer=load_scorer("clip-mini"))'
            )
        scores: list[float] = []
        for place, prompt in enumerate(prompts):
            scores += score_images(scorer, prompt, _readable(block.images[place * each : (place + 1) * each]))
        starts = range(0, len(scores), each)
        kept = [start + i for start in starts for i in order(scores[start : start + each])[: block.top_k]]
        block.images = _picked(block.images, kept)
        block.scores, block.indices = [scores[place] for place in kept], kept
        self.set_block_state(state, block)
        return components, state


def _images_per_prompt(images: int, prompts: int, top_k: object) -> int:
    if not prompts or images % prompts:
        raise UsageError(f"images: expected as many for each of {prompts} prompts, got {images} in all")
    each = images // prompts
    if type(top_k) is not int or not 1 <= top_k <= each:
        raise UsageError(f"top_k: expected 1 to {each}, the images of a prompt, got {top_k!r}")
    return each


def _readable(images: Any) -> Any:
    """Images in a form that a scorer takes."""
    return torch.from_numpy(images).permute(0, 3, 1, 2) if isinstance(images, np.ndarray) else images


def _picked(images: Any, places: Sequence[int]) -> Any:
    return [images[place] for place in places] if isinstance(images, list) else images[list(places)]
