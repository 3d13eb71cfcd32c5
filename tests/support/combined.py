"""Tiny random pipelines of the families that take more than a text encoder and a denoiser: priors, language models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from support.loops import build_projecting_encoder
from support.tiny import build_text_encoder, build_tokenizer

_KANDINSKY = {
    "in_channels": 4, "out_channels": 8, "cross_attention_dim": 32, "layers_per_block": 1, "attention_head_dim": 4,
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "block_out_channels": (32, 64), "encoder_hid_dim": 32,
    "resnet_time_scale_shift": "scale_shift",
}  # fmt: skip


def build_movq() -> Any:
    return diffusers.VQModel(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"), latent_channels=4, layers_per_block=1,
        norm_num_groups=8, norm_type="spatial", num_vq_embeddings=12, vq_embed_dim=4,
    ).eval()  # fmt: skip


def _prior() -> dict[str, Any]:
    """What Kandinsky 2.1 and 2.2 make an image embedding of a prompt with."""
    vision = CLIPVisionConfig(
        hidden_size=32, image_size=30, intermediate_size=37, num_attention_heads=4, num_hidden_layers=1, patch_size=15,
        projection_dim=32,
    )  # fmt: skip
    return {
        "prior_prior": diffusers.PriorTransformer(
            num_attention_heads=2, attention_head_dim=12, embedding_dim=32, num_layers=1
        ).eval(),
        "prior_image_encoder": CLIPVisionModelWithProjection(vision).eval(),
        "prior_text_encoder": build_projecting_encoder(build_tokenizer()),
        "prior_tokenizer": build_tokenizer(),
        "prior_scheduler": diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", num_train_timesteps=1000, clip_sample_range=5.0
        ),
        "prior_image_processor": CLIPImageProcessor(crop_size=30, size=30),
    }


def build_kandinsky22() -> Any:
    unet = diffusers.UNet2DConditionModel(addition_embed_type="image", encoder_hid_dim_type="image_proj", **_KANDINSKY)
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    return diffusers.KandinskyV22CombinedPipeline(unet=unet.eval(), scheduler=scheduler, movq=build_movq(), **_prior())


def build_kandinsky(tokenizer: Any) -> Any:
    from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP

    config = MCLIPConfig(
        numDims=32, transformerDimensions=32, hidden_size=32, intermediate_size=37, num_attention_heads=4,
        num_hidden_layers=1, vocab_size=len(tokenizer),
    )  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        addition_embed_type="text_image", encoder_hid_dim_type="text_image_proj", **_KANDINSKY
    )
    return diffusers.KandinskyCombinedPipeline(
        text_encoder=MultilingualCLIP(config).eval(), tokenizer=tokenizer, unet=unet.eval(), movq=build_movq(),
        scheduler=diffusers.DDIMScheduler(clip_sample=False), **_prior(),
    )  # fmt: skip


def build_wuerstchen() -> Any:
    from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel, WuerstchenDiffNeXt, WuerstchenPrior

    tokenizer = build_tokenizer()
    return diffusers.WuerstchenCombinedPipeline(
        tokenizer=tokenizer, text_encoder=build_text_encoder(tokenizer).eval(),
        decoder=WuerstchenDiffNeXt(
            c_cond=32, c_hidden=[32], nhead=[-1], blocks=[1], level_config=["CT"], clip_embd=32, inject_effnet=[False]
        ).eval(),
        scheduler=diffusers.DDPMWuerstchenScheduler(),
        vqgan=PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=2).eval(),
        prior_tokenizer=tokenizer, prior_text_encoder=build_text_encoder(tokenizer).eval(),
        prior_prior=WuerstchenPrior(c_in=2, c=8, depth=2, c_cond=32, c_r=8, nhead=2).eval(),
        prior_scheduler=diffusers.DDPMWuerstchenScheduler(),
    )  # fmt: skip


def build_cascade() -> Any:
    from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel

    tokenizer = build_tokenizer()
    encoder = build_projecting_encoder(tokenizer)
    shared = {"conditioning_dim": 16, "clip_text_pooled_in_channels": 32, "switch_level": (False,)}
    blocks = {
        "down_num_layers_per_block": (1, 1), "up_num_layers_per_block": (1, 1), "down_blocks_repeat_mappers": (1, 1),
        "up_blocks_repeat_mappers": (1, 1), "num_attention_heads": (2, 2), "block_out_channels": (16, 16),
        "kernel_size": 3, "dropout": (0.0, 0.0),
        "block_types_per_layer": (("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),) * 2,
    }  # fmt: skip
    prior = diffusers.StableCascadeUNet(
        in_channels=4, out_channels=4, clip_text_in_channels=32, clip_image_in_channels=32, **shared, **blocks
    )
    decoder = diffusers.StableCascadeUNet(
        in_channels=4, out_channels=4, effnet_in_channels=4, patch_size=2, **{**shared, "switch_level": None}, **blocks
    )
    return diffusers.StableCascadeCombinedPipeline(
        tokenizer=tokenizer, text_encoder=encoder, decoder=decoder.eval(),
        scheduler=diffusers.DDPMWuerstchenScheduler(),
        vqgan=PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=2).eval(), prior_prior=prior.eval(),
        prior_text_encoder=encoder, prior_tokenizer=tokenizer, prior_scheduler=diffusers.DDPMWuerstchenScheduler(),
    )  # fmt: skip


class Processor:
    """Stands in for the processor of a model that reads pictures too: only text is given here."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.tokenizer = SimpleNamespace(encode=lambda text: [-1])  # asked for the place of a picture: none is given

    def __call__(self, text: Any, **how: Any) -> Any:
        return self._tokenizer(text, **how)

    def apply_chat_template(self, messages: Any, *, tokenize: bool, **how: Any) -> Any:
        """A text, or the tokens of each conversation."""
        found = self._tokenizer.apply_chat_template(messages, tokenize=tokenize, **how)
        return [found] if tokenize else found


def build_vision_language_model(vocabulary: int, layers: int = 2) -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    text = {
        "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": layers,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 4096,
        "rope_scaling": {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32,
        "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision)).eval()


def build_nucleus(tokenizer: Any, vae: Any) -> Any:
    transformer = diffusers.NucleusMoEImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(4, 4, 8), mlp_ratio=2.0, moe_enabled=False,
    ).eval()  # fmt: skip
    return diffusers.NucleusMoEImagePipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae,
        text_encoder=build_vision_language_model(len(tokenizer), layers=9), processor=Processor(tokenizer),
    )  # fmt: skip


def build_qwen21(tokenizer: Any) -> Any:
    vae = diffusers.AutoencoderKLQwenImage21(
        base_dim=8, decoder_base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1, 1], num_res_blocks=1,
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.7, 1.1, 0.9],
    ).eval()  # fmt: skip
    return diffusers.QwenImage21Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae, processor=Processor(tokenizer),
        text_encoder=build_vision_language_model(len(tokenizer)),
        transformer=diffusers.QwenImage21Transformer2DModel(
            in_channels=4, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
            context_in_dim=32, axes_dims_rope=(4, 6, 6),
        ).eval(),
    )  # fmt: skip


def build_ideogram(tokenizer: Any, vae: Any) -> Any:
    settings = {
        "in_channels": 16, "num_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
        "intermediate_size": 32, "adaln_dim": 16, "mrope_section": (4, 2, 2),
    }  # fmt: skip
    from diffusers.pipelines.ideogram4 import pipeline_ideogram4

    taps = pipeline_ideogram4.QWEN3_VL_ACTIVATION_LAYERS
    settings["llm_features_dim"] = 32 * len(taps)
    torch.manual_seed(0)
    return diffusers.Ideogram4Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae, tokenizer=tokenizer,
        text_encoder=build_vision_language_model(len(tokenizer), layers=max(taps) + 1).model,
        transformer=diffusers.Ideogram4Transformer2DModel(**settings).eval(),
        unconditional_transformer=diffusers.Ideogram4Transformer2DModel(**settings).eval(),
    )  # fmt: skip
