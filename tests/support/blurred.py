"""A pipeline whose drafts of few steps are its finished images with noise of their own."""

from __future__ import annotations

import torch

from sp_rerank.generate import generate
from sp_rerank.scorers.brightness import BrightnessScorer
from support.doubles import SeededPipe

SETTINGS = {"n": 40, "batch_size": 8, "guidance_scale": 1.0, "steps": 5}


class BlurredPipe(SeededPipe):
    """A draft of few steps is the finished image with a brightness that is off by noise of its own."""

    def __call__(self, prompt, num_inference_steps=5, guidance_scale=1.0, generator=None, **others):
        output = super().__call__(prompt, num_inference_steps, guidance_scale, generator=generator, **others)
        for image, source, flagged in zip(output.images, generator, output.nsfw_content_detected, strict=True):
            if flagged:
                continue
            noise = torch.Generator().manual_seed(source.initial_seed() * 100 + num_inference_steps)
            off = 0.02 * (5 - num_inference_steps) * torch.randn(1, generator=noise)
            image.copy_((image * 0.5 + 0.25 + off).clamp(0, 1))
        return output


def run(pipe, folder=None, prompt="a lemon", **arguments):
    arguments = {**SETTINGS, **arguments}
    return generate(prompt, pipe=pipe, scorer=BrightnessScorer(), out=folder, **arguments)
