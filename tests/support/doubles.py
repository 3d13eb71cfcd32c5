"""A pipeline without a model: fast, seeded, and made to fail on purpose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn


class SeededPipe:
    """Draws an 8x8 image of noise from each generator; stands in for a diffusers pipeline.

    Args:
        spoil: gets the seeds and the images (b, 3, 8, 8) of a call, and may change the images or raise.
        flagged: seeds whose images the safety checker is to have replaced.
    """

    def __init__(self, spoil: Callable[[list[int], torch.Tensor], None] | None = None, flagged: Sequence[int] = ()):
        self.unet, self.scheduler = nn.Identity(), SimpleNamespace()
        self.device, self.dtype, self.config = torch.device("cpu"), torch.float32, {}
        self.spoil, self.flagged = spoil, set(flagged)
        self.made: list[list[int]] = []

    def __call__(
        self,
        prompt: str | list[str],
        num_inference_steps: int = 5,
        guidance_scale: float = 7.5,
        num_images_per_prompt: int = 1,
        generator: Any = None,
        output_type: str = "pt",
        return_dict: bool = True,
        height: int | None = None,
        width: int | None = None,
    ) -> SimpleNamespace:
        prompts = [prompt] if isinstance(prompt, str) else prompt
        assert num_images_per_prompt * len(prompts) == len(generator)
        seeds = [noise.initial_seed() for noise in generator]
        for _ in range(num_inference_steps):
            self.unet(torch.zeros(1))
        images = torch.stack([torch.rand(3, 8, 8, generator=noise) for noise in generator])
        if self.spoil:
            self.spoil(seeds, images)
        flags = [seed in self.flagged for seed in seeds]
        images[torch.tensor(flags)] = 0
        self.made.append(seeds)
        return SimpleNamespace(images=images, nsfw_content_detected=flags)
