"""Scenes made wrong in ways in which a diffusion model goes wrong, with a map of where and how much.

Two sources: pixels that are warped, smeared, colored or mixed with another scene under a smooth mask; and scenes that
the embedded model draws again from a level of noise (SDEdit, Meng et al. 2022). Self-supervised: what is known is the
scene from which a picture was made, not what anybody thinks of it.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from sp_rerank import load_pipeline
from sp_rerank.diffusion.loading import MODELS, find_dtype
from sp_rerank.storage.images import to_images
from sp_rerank.train.mini.scenes import SIDE, Scene
from sp_rerank.train.mini.training import pixels, scenes_of_step

CELLS = 16  # a side of the maps of errors
REDRAWN, AT_ONCE = 6000, 20
STRENGTHS = (0.3, 0.95)  # of the noise that a scene is drawn again from
STEPS = 12
SEED = 41


def corrupt(images: Tensor, others: Tensor) -> Tensor:
    """Each image changed in one of four ways, somewhere and by a random amount.

    Args:
        images: (n, 3, 64, 64) in [0, 1].
        others: (n, 3, 64, 64): what an image is mixed with, for example another scene of the same caption.
    """
    n = len(images)
    ways = torch.stack([_warped(images), _smeared(images), _colored(images), others])
    changed = ways[torch.tensor([0, 0, 1, 2, 3, 3])[torch.randint(6, (n,))], torch.arange(n)]
    return (images + _masks(n) * (changed - images)).clamp(0, 1)


def error_map(images: Tensor, originals: Tensor) -> Tensor:
    """(n, CELLS, CELLS): the mean absolute difference of each cell, both blurred 3x3, at most .4 a pixel."""
    difference = (F.avg_pool2d(images - originals, 3, 1, 1)).abs().mean(dim=1, keepdim=True).clamp(max=0.4)
    return F.avg_pool2d(difference, SIDE // CELLS)[:, 0]


def _smooth(n: int, channels: int, cells: int) -> Tensor:
    return F.interpolate(torch.randn(n, channels, cells, cells), size=SIDE, mode="bicubic")


def _masks(n: int) -> Tensor:
    """(n, 1, 64, 64) in [0, 1]: of each image a part, of one in four everything."""
    threshold = torch.randn(n, 1, 1, 1) * 0.5 + 0.3
    masks = ((_smooth(n, 1, 4) - threshold) * 4).sigmoid()
    return torch.where(torch.rand(n, 1, 1, 1) < 0.25, torch.ones_like(masks), masks)


def _warped(images: Tensor) -> Tensor:
    n = len(images)
    cells = 6
    shift = _smooth(n, 2, cells) * torch.rand(n, 1, 1, 1) * 8 / SIDE
    identity = F.affine_grid(torch.eye(2, 3).expand(n, 2, 3), [n, 3, SIDE, SIDE], align_corners=False)
    return F.grid_sample(images, identity + shift.movedim(1, -1), padding_mode="border", align_corners=False)


def _smeared(images: Tensor) -> Tensor:
    small = F.avg_pool2d(images, 5, stride=1, padding=2, count_include_pad=False)
    smaller = F.interpolate(F.avg_pool2d(images, 8), size=SIDE, mode="bicubic")
    return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, small, smaller)


def _colored(images: Tensor) -> Tensor:
    return images + 0.3 * torch.randn(len(images), 3, 1, 1)


def redrawn(work: Path) -> tuple[Tensor, list[Scene]]:
    """Scenes drawn again by the embedded model, (6000, 3, 64, 64) in [0, 1], and the scenes; made once and kept."""
    scenes = [scene for step in range(REDRAWN // AT_ONCE) for scene in scenes_of_step(SEED, step, AT_ONCE)]
    path = work / "redrawn.safetensors"
    if not path.exists():
        low, high = STRENGTHS
        strengths = [random.Random(f"{SEED}-{step}").uniform(low, high) for step in range(REDRAWN // AT_ONCE)]
        images = torch.cat([
            redraw(scenes[first : first + AT_ONCE], strengths[first // AT_ONCE], seed=SEED * 10**6 + first)
            for first in range(0, REDRAWN, AT_ONCE)
        ])
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        save_file({"images": (images * 255).round().byte()}, temporary)
        temporary.replace(path)
    return load_file(path)["images"].float() / 255, scenes


@functools.cache
def _pipeline() -> Any:
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionImg2ImgPipeline

    components = load_pipeline("mini", dtype=find_dtype("auto", "mini", "cpu")).components
    pipe = StableDiffusionImg2ImgPipeline(**components, requires_safety_checker=False)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def redraw(scenes: Sequence[Scene], strength: float, *, seed: int) -> Tensor:
    """Scenes drawn again by the embedded model, (n, 3, 64, 64) in [0, 1].

    Args:
        scenes: which.
        strength: Level of noise to begin from, in [0, 1]; 0 is the autoencoder alone.
        seed: of the first one's noise; the others' count up.
    """
    pipe, images = _pipeline(), pixels(list(scenes))
    if strength == 0:
        with torch.inference_mode():
            latents = pipe.vae.encode(images.to(pipe.vae.dtype)).latent_dist.mean
            return (pipe.vae.decode(latents).sample.float() / 2 + 0.5).clamp(0, 1)
    return pipe(
        [scene.description.caption for scene in scenes],
        image=list(to_images(images / 2 + 0.5)),
        strength=strength,
        num_inference_steps=STEPS,
        guidance_scale=MODELS["mini"].guidance_scale,
        generator=[torch.Generator().manual_seed(seed + i) for i in range(len(scenes))],
        output_type="pt",
    ).images.float()
