"""Tiny random pipelines of each family whose images do not depend on the batch they are made in."""

from __future__ import annotations

import functools
import gc
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from greenlet import getcurrent, greenlet
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel

from sp_rerank.diffusion.sampler import Sampler
from support.tiny import build_sdxl, build_text_encoder, build_tokenizer, build_vae

PROMPT = "a lemon on the beach"


def by_rows(pipe: Any) -> Any:
    """Let denoiser and autoencoder take one item at a time: a CPU's kernels round otherwise in another batch.

    Noise, guidance, scheduler and history remain batched, so a cut that is right gives the very same bits.
    """
    denoiser = pipe.transformer if getattr(pipe, "unet", None) is None else pipe.unet
    forward = denoiser.forward

    @functools.wraps(forward)
    def one_by_one(*args: Any, **more: Any) -> tuple[torch.Tensor]:
        rows = len(args[0] if args else more["hidden_states"])

        def row(value: Any, i: int) -> Any:
            if isinstance(value, dict):
                return {name: item if name in {"txt_ids", "img_ids"} else row(item, i) for name, item in value.items()}
            if isinstance(value, torch.Tensor) and value.ndim:
                assert len(value) == rows  # whatever was not cut would be broadcast in silence
                return value[i : i + 1]
            return value

        return (torch.cat([forward(*(row(value, i) for value in args), **row(more, i))[0] for i in range(rows)]),)

    denoiser.forward = one_by_one
    pipe.vae.enable_slicing()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def build_sd() -> Any:
    """Stable Diffusion 1: 8x8 pixels, PNDM."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    components: dict[str, Any] = {
        "vae": build_vae().eval(),
        "text_encoder": build_text_encoder(tokenizer).eval(),
        "tokenizer": tokenizer,
        "unet": UNet2DConditionModel(
            sample_size=4,
            block_out_channels=(8,),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
            cross_attention_dim=32,
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("UpBlock2D",),
            mid_block_type=None,
        ).eval(),
        "scheduler": PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1),
        "safety_checker": None,
        "feature_extractor": None,
    }
    return by_rows(StableDiffusionPipeline(**components, requires_safety_checker=False))


def build_shifted_vae() -> AutoencoderKL:
    return AutoencoderKL(**{**build_vae().config, "shift_factor": 0.1, "scaling_factor": 1.5}).eval()


def build_projecting_encoder(tokenizer: Any) -> CLIPTextModelWithProjection:
    config = build_text_encoder(tokenizer).config
    config.projection_dim = 32
    return CLIPTextModelWithProjection(config).eval()


def build_sd3() -> Any:
    """Stable Diffusion 3 without its optional third text encoder: 16x16 pixels."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    components: dict[str, Any] = {
        "transformer": SD3Transformer2DModel(
            sample_size=8,
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=64,
            pooled_projection_dim=64,
        ).eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "vae": build_shifted_vae(),
        "text_encoder": build_projecting_encoder(tokenizer),
        "tokenizer": tokenizer,
        "text_encoder_2": build_projecting_encoder(tokenizer),
        "tokenizer_2": tokenizer,
        "text_encoder_3": None,
        "tokenizer_3": None,
    }
    return by_rows(StableDiffusion3Pipeline(**components))


def build_flux() -> Any:
    """Flux, distilled guidance included; its latents are packed."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    t5 = T5Config(vocab_size=len(tokenizer), d_model=32, d_ff=37, d_kv=8, num_heads=4, num_layers=1)
    components: dict[str, Any] = {
        "transformer": FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        ).eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "vae": build_shifted_vae(),
        "text_encoder": build_text_encoder(tokenizer).eval(),
        "tokenizer": tokenizer,
        "text_encoder_2": T5EncoderModel(t5).eval(),
        "tokenizer_2": tokenizer,
    }
    return by_rows(FluxPipeline(**components))


FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "sd": (build_sd, {}),
    "sdxl": (lambda: by_rows(build_sdxl()), {}),
    "sd3": (build_sd3, {}),
    "flux": (build_flux, {"max_sequence_length": 16, "height": 16, "width": 16}),
    "flux, guided": (
        build_flux,
        {"max_sequence_length": 16, "height": 16, "width": 16, "true_cfg_scale": 2.0, "negative_prompt": "a cat"},
    ),
}


@functools.cache
def family(name: str) -> tuple[Any, dict[str, Any]]:
    """One of FAMILIES for reading only, and what its call takes."""
    build, arguments = FAMILIES[name]
    return build(), arguments


def sampler_of(pipe: Any, batch_size: int = 3, **arguments: Any) -> Sampler:
    given: dict[str, Any] = {"guidance_scale": 3.0, "num_inference_steps": 6, **arguments}
    return Sampler(pipe, PROMPT, batch_size=batch_size, **given)


def seeds_of(n: int) -> dict[int, int]:
    return {index: 100 + index for index in range(n)}


def waiting_loops() -> list[greenlet]:
    """Pipelines that wait in the middle of their loop."""
    found = [waiting for waiting in gc.get_objects() if type(waiting) is greenlet]  # asking others wakes lazy ones
    return [waiting for waiting in found if waiting and waiting is not getcurrent()]
