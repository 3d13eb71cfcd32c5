"""python -m sp_rerank.train.mini.denoiser [--steps 6000] [--work build/mini]

Stage 2 of 4: the UNet and the text encoder of the mini diffusion model, trained together on the latents of 40,000
scenes; then the whole pipeline is written to WORK/pipeline in Stable Diffusion v1's layout, float16.
An hour and ten minutes on two cores (90 images a second); expected at the end: loss about .055.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from sp_rerank.train.mini.grammar import Description
from sp_rerank.train.mini.training import fit, pixels, scenes_of_step
from sp_rerank.train.mini.vocabulary import CONTEXT, build_tokenizer

BATCH = 64
SEED = 11
SCENES = 40_000
WIDTH = 128  # of the text encoder
PAIR_WEIGHT = 2  # how often a scene of two objects is drawn, against any other: they are the harder ones
UNCONDITIONAL = 0.1  # share of captions left empty, for classifier-free guidance
SNR_CAP = 5.0  # min-SNR weighting, Hang et al. 2023, arXiv 2303.09556, eq. 5 for epsilon prediction


def build_unet() -> UNet2DConditionModel:
    """An untrained denoiser for 16x16x4 latents, 11 M parameters."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )


def build_text_encoder(vocabulary: int) -> CLIPTextModel:
    """An untrained text encoder of three layers; `vocabulary` counts tokens, the last two being start and end."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )


def build_scheduler() -> PNDMScheduler:
    """The scheduler of Stable Diffusion v1.4's checkpoint.

    `clip_sample` is no argument of PNDM, but its checkpoint names it: other schedulers are built from this
    configuration, and DDIM's own default would cut the latents.
    """
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    )
    scheduler.register_to_config(clip_sample=False)
    return scheduler


def save_pipeline(pipe: StableDiffusionPipeline, folder: Path) -> None:
    """Write a pipeline with its weights in float16, to be loaded in float32 where no dtype is asked for.

    transformers takes a missing dtype out of the text encoder's configuration, diffusers takes float32 for the rest;
    with half precision named there the text encoder would not fit the denoiser.
    """
    pipe.to(torch.float16).save_pretrained(folder)
    file = folder / "text_encoder" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {"dtype": "float32"}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@torch.inference_mode()
def encode_scenes(autoencoder: Any, n: int) -> tuple[Tensor, list[Description]]:
    """The scaled latents (n, 4, 16, 16) of n training scenes, and their descriptions."""
    latents, descriptions = [], []
    for step in range(n // 100):
        scenes = scenes_of_step(SEED, step, 100)
        with torch.autocast("cpu", torch.bfloat16):
            latents.append(autoencoder.encode(pixels(scenes)).latent_dist.mean.float())
        descriptions += [scene.description for scene in scenes]
    return torch.cat(latents) * autoencoder.config["scaling_factor"], descriptions


def main(steps: int, work: Path) -> None:
    """Train and write the pipeline; needs the autoencoder in WORK/autoencoder/model."""
    torch.manual_seed(SEED)
    autoencoder = AutoencoderKL.from_pretrained(work / "autoencoder" / "model")
    tokenizer, unet = build_tokenizer(), build_unet()
    unet.set_attn_processor(AttnProcessor())  # on a CPU, a fifth less time a step than the fused kernel's backward
    scheduler: Any = build_scheduler()  # diffusers names a type that no tensor has
    text_encoder = build_text_encoder(len(tokenizer))
    latents, descriptions = encode_scenes(autoencoder, SCENES)
    cumulated = list(itertools.accumulate(PAIR_WEIGHT if d.second else 1 for d in descriptions))

    def tokens_of(texts: list[str]) -> Tensor:
        return tokenizer(
            texts, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt"
        ).input_ids

    tokens, empty = tokens_of([d.caption for d in descriptions]), tokens_of([""])
    ratio = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    weights = ratio.clamp(max=SNR_CAP) / ratio

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(f"{SEED}-{step}")
        chosen = torch.tensor(rng.choices(range(SCENES), cum_weights=cumulated, k=BATCH))
        clean, noise = latents[chosen], torch.randn(BATCH, 4, 16, 16)
        times = torch.randint(0, 1000, (BATCH,))
        ids = torch.where(torch.rand(BATCH, 1) < UNCONDITIONAL, empty, tokens[chosen])
        with torch.autocast("cpu", torch.bfloat16):
            context = text_encoder(ids).last_hidden_state
            predicted = unet(scheduler.add_noise(clean, noise, times), times, context).sample
        error = (predicted.float() - noise).square().mean(dim=(1, 2, 3))
        return (weights[times] * error).mean(), {"error": error.mean().item()}

    module = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    fit(module, loss_of, steps=steps, peak=8e-4, folder=work / "denoiser")
    components: dict[str, Any] = {
        "vae": autoencoder,
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "unet": unet,
        "scheduler": scheduler,
        "safety_checker": None,
        "feature_extractor": None,
    }
    pipe = StableDiffusionPipeline(**components, requires_safety_checker=False)
    save_pipeline(pipe, work / "pipeline")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--work", type=Path, default=Path("build/mini"))
    args = parser.parse_args()
    main(args.steps, args.work)
