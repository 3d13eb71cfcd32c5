"""Stable Diffusion v1.4's exact layout with tiny random weights: 16x16 pixels, two steps in a tenth of a second."""

from __future__ import annotations

import functools
import gzip
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)


@functools.cache
def build_tokenizer() -> CLIPTokenizer:
    """CLIP's own vocabulary and limit of 77 tokens, from the file that open_clip ships."""
    from open_clip.tokenizer import bytes_to_unicode, default_bpe

    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        merges = file.read().split("\n")[1 : 49152 - 256 - 2 + 1]
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[tuple(merge.split(" ")) for merge in merges],
        pad_token="<|endoftext|>",
        model_max_length=77,
    )


def build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=4,
        cross_attention_dim=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )


def build_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=16,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=37,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_safety_checker(threshold: float) -> StableDiffusionSafetyChecker:
    """Flags everything below a threshold of -1, nothing above 1: it compares cosines with it."""
    vision = {
        "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 4,
        "image_size": 30, "patch_size": 15,
    }  # fmt: skip
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=32))
    torch.nn.init.normal_(checker.concept_embeds)
    torch.nn.init.normal_(checker.special_care_embeds)
    torch.nn.init.constant_(checker.concept_embeds_weights, threshold)
    torch.nn.init.constant_(checker.special_care_embeds_weights, 2.0)
    return checker.eval()


def build_sd_pipeline(*, safety_threshold: float | None = None, stochastic: bool = False) -> StableDiffusionPipeline:
    """Laid out as CompVis/stable-diffusion-v1-4: seven components; 16x16 pixels.

    Args:
        safety_threshold: Of the safety checker; None leaves it out.
        stochastic: Takes a scheduler that draws noise on the way instead of PNDM.
    """
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    checker = None if safety_threshold is None else build_safety_checker(safety_threshold)
    extractor = CLIPImageProcessor(size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30})
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    )
    components: dict[str, Any] = {
        "vae": build_vae().eval(),
        "text_encoder": build_text_encoder(tokenizer).eval(),
        "tokenizer": tokenizer,
        "unet": build_unet().eval(),
        "scheduler": EulerAncestralDiscreteScheduler.from_config(scheduler.config) if stochastic else scheduler,
        "safety_checker": checker,
        "feature_extractor": extractor if checker else None,
    }
    pipe = StableDiffusionPipeline(**components, requires_safety_checker=checker is not None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_checkpoint(folder: Path, *, safety_threshold: float | None) -> Path:
    """Write a checkpoint of that layout, safetensors only."""
    build_sd_pipeline(safety_threshold=safety_threshold).save_pretrained(folder)
    return folder


def build_sdxl() -> StableDiffusionXLPipeline:
    """A tiny Stable Diffusion XL: two text encoders, the second with a pooled embedding."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    second = build_text_encoder(tokenizer).config
    second.projection_dim = 32
    components: dict[str, Any] = {
        "vae": build_vae().eval(),
        "text_encoder": build_text_encoder(tokenizer).eval(),
        "text_encoder_2": CLIPTextModelWithProjection(second).eval(),
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "unet": UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            norm_num_groups=8,
            attention_head_dim=4,
            cross_attention_dim=64,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 32,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ).eval(),
        "scheduler": EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="leading"),
    }
    pipe = StableDiffusionXLPipeline(**components, force_zeros_for_empty_prompt=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe
