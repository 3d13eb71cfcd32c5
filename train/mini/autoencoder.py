"""python -m sp_rerank.train.mini.autoencoder [--steps 5000] [--work build/mini]

Stage 1 of 4: the autoencoder of the mini diffusion model, 64x64 pixels to 16x16x4 latents, in Stable Diffusion's
layout. Thirty-five minutes on two cores (40 images a second); expected at the end:
mean absolute error about .02 of the value range.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from sp_rerank.train.mini.training import fit, pixels, scenes_of_step

BATCH = 16
SEED = 1


def build_autoencoder() -> AutoencoderKL:
    """An untrained autoencoder with a reduction of 4 and four latent channels."""
    config: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (16, 48, 96),
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 8,
        "sample_size": 64,
    }
    return AutoencoderKL(**config)


def edges(images: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighboring pixels, across and down."""
    return images[..., :, 1:] - images[..., :, :-1], images[..., 1:, :] - images[..., :-1, :]


def reconstruction_loss(images: Tensor, decoded: Tensor) -> Tensor:
    """Mean absolute error of pixels and of their edges; the second keeps outlines sharp."""
    loss = (images - decoded).abs().mean()
    for real, made in zip(edges(images), edges(decoded), strict=True):
        loss = loss + (real - made).abs().mean()
    return loss


def main(steps: int, work: Path) -> None:
    """Train, measure the latents' spread, and write the autoencoder in float32 to WORK/autoencoder/model."""
    torch.manual_seed(SEED)
    model: Any = build_autoencoder()

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        images = pixels(scenes_of_step(SEED, step, BATCH))
        with torch.autocast("cpu", torch.bfloat16):
            posterior = model.encode(images).latent_dist
            decoded = model.decode(posterior.sample()).sample
        loss = reconstruction_loss(images, decoded.float())
        return loss + 1e-6 * posterior.kl().mean(), {"l1": (images - decoded).abs().mean().item() / 2}

    fit(model, loss_of, steps=steps, peak=1.5e-3, folder=work / "autoencoder")
    with torch.inference_mode():
        latents = model.encode(pixels(scenes_of_step(SEED + 1, 0, 512))).latent_dist.mean
        images = pixels(scenes_of_step(SEED + 1, 1, 256))
        error = (model.decode(model.encode(images).latent_dist.mean).sample - images).abs().mean().item() / 2
    model.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    model.save_pretrained(work / "autoencoder" / "model")
    print(json.dumps({"mean_absolute_error": round(error, 4), "scaling_factor": model.config["scaling_factor"]}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--work", type=Path, default=Path("build/mini"))
    args = parser.parse_args()
    main(args.steps, args.work)
