"""Tiny random pipelines that take a control image, of every family of diffusers' mapping that has such ones."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import diffusers
from PIL import Image

from support.tiny import build_sd_pipeline, build_sdxl

EDGES = (8, 16)
"""Channels of what reads the control image."""


@functools.cache
def control_image(side: int = 16) -> Image.Image:
    return Image.linear_gradient("L").resize((side, side)).convert("RGB")


def on_sd(name: str) -> Any:
    source = build_sd_pipeline()
    controlnet = diffusers.ControlNetModel.from_unet(source.unet, conditioning_embedding_out_channels=EDGES).eval()
    return getattr(diffusers, name)(**source.components, controlnet=controlnet, requires_safety_checker=False)


def on_sdxl(name: str) -> Any:
    source = build_sdxl()
    controlnet = diffusers.ControlNetModel.from_unet(source.unet, conditioning_embedding_out_channels=EDGES).eval()
    return getattr(diffusers, name)(**source.components, controlnet=controlnet, add_watermarker=False)


def union() -> Any:
    source = build_sdxl()
    taken = inspect.signature(diffusers.ControlNetUnionModel.__init__).parameters
    kept = {name: value for name, value in source.unet.config.items() if name in taken}
    settings = {**kept, "conditioning_embedding_out_channels": EDGES, "num_control_type": 2, "num_trans_channel": 16}
    settings |= {"num_trans_head": 2, "num_proj_channel": 16, "in_channels": 4}
    controlnet = diffusers.ControlNetUnionModel(**settings).eval()
    return diffusers.StableDiffusionXLControlNetUnionPipeline(
        **source.components, controlnet=controlnet, add_watermarker=False
    )


def sd3(build: Callable[[], Any]) -> Any:
    source = build()
    settings = dict(source.transformer.config)
    controlnet = diffusers.SD3ControlNetModel(**{
        name: settings[name]
        for name in (
            "sample_size", "patch_size", "in_channels", "num_layers", "attention_head_dim", "num_attention_heads",
            "joint_attention_dim", "caption_projection_dim", "pooled_projection_dim", "out_channels",
        )
    }).eval()  # fmt: skip
    return diffusers.StableDiffusion3ControlNetPipeline(**filled(source), controlnet=controlnet)


def flux(build: Callable[[], Any], settings: dict[str, Any]) -> Any:
    controlnet = diffusers.FluxControlNetModel(**settings, pooled_projection_dim=32, guidance_embeds=True).eval()
    return diffusers.FluxControlNetPipeline(**filled(build()), controlnet=controlnet)


def qwen(build: Callable[[], Any]) -> Any:
    source = build()
    settings = {name: value for name, value in source.transformer.config.items() if not name.startswith("_")}
    names = ("patch_size", "in_channels", "out_channels", "num_layers", "attention_head_dim", "num_attention_heads",
             "joint_attention_dim", "axes_dims_rope")  # fmt: skip
    controlnet = diffusers.QwenImageControlNetModel(**{name: settings[name] for name in names}).eval()
    return diffusers.QwenImageControlNetPipeline(**filled(source), controlnet=controlnet)


def z_image(build: Callable[[], Any], name: str) -> Any:
    source = build()
    settings = source.transformer.config
    in_channels = 4 if name == "ZImageControlNetPipeline" else 9
    controlnet = diffusers.ZImageControlNetModel(
        control_layers_places=[0], control_refiner_layers_places=[0], control_in_dim=in_channels,
        add_control_noise_refiner=None, all_patch_size=(2,), all_f_patch_size=(1,), dim=settings["dim"],
        n_refiner_layers=1, n_heads=2, n_kv_heads=2,
    ).eval()  # fmt: skip
    return getattr(diffusers, name)(**filled(source), controlnet=controlnet)


def filled(pipe: Any) -> dict[str, Any]:
    """The components of a pipeline but for those that another class does not take."""
    return {
        name: value for name, value in pipe.components.items() if name not in ("image_encoder", "feature_extractor")
    }
