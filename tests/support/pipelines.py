"""Tiny random pipelines of every family of diffusers' text-to-image mapping that can be built without a download.

Text encoders and tokenizers are stand-ins of the right interface: what matters here is the pipeline's own loop.
The file is long because it is a list: one short builder a family.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

from sp_rerank.diffusion.loading import quiet
from support import combined, controlled
from support.loops import build_projecting_encoder, build_shifted_vae
from support.tiny import build_sd_pipeline, build_sdxl, build_text_encoder, build_tokenizer, build_unet, build_vae

SIDE = 16
CHAT = "{% for message in messages %}{{ message['content'] if message['content'] is string else 'text' }}{% endfor %}"


@functools.cache
def build_byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, with a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate(["<pad>", "</s>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", bos_token="</s>", model_max_length=32
    )
    fast.chat_template = CHAT
    return fast


def build_t5() -> T5EncoderModel:
    vocabulary = len(build_byte_tokenizer())
    config = T5Config(vocab_size=vocabulary, d_model=32, d_ff=37, d_kv=8, num_heads=4, num_layers=1)
    return T5EncoderModel(config).eval()


class LanguageModel(Qwen3Model):
    """Stands in for models that read pictures too, whose positions have three axes."""

    def forward(self, *args: Any, position_ids: Any = None, **more: Any) -> Any:
        return super().forward(*args, **more)


def build_language_model(layers: int = 2) -> LanguageModel:
    config = Qwen3Config(
        vocab_size=len(build_byte_tokenizer()), hidden_size=32, intermediate_size=32, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=2, head_dim=16, max_position_embeddings=4096,
    )  # fmt: skip
    return LanguageModel(config).eval()


def build_video_vae() -> Any:
    return diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False], attn_scales=[],
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.7, 1.1, 0.9],
    ).eval()  # fmt: skip


def flow() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler()


def ddpm() -> Any:
    return diffusers.DDPMScheduler()


def flux_settings(**more: Any) -> dict[str, Any]:
    return {
        "patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": 32, "axes_dims_rope": (4, 4, 8), **more,
    }  # fmt: skip


def build_sd_class(name: str, **more: Any) -> Any:
    source = build_sd_pipeline()
    return getattr(diffusers, name)(**source.components, requires_safety_checker=False, **more)


def build_xl_class(name: str, **more: Any) -> Any:
    return getattr(diffusers, name)(**build_sdxl().components, **more)


def build_sd3(name: str = "StableDiffusion3Pipeline", **more: Any) -> Any:
    tokenizer = build_tokenizer()
    return getattr(diffusers, name)(
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=8, patch_size=1, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
            num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=64, pooled_projection_dim=64,
        ).eval(),
        scheduler=flow(), vae=build_shifted_vae(),
        text_encoder=build_projecting_encoder(tokenizer), tokenizer=tokenizer,
        text_encoder_2=build_projecting_encoder(tokenizer), tokenizer_2=tokenizer,
        text_encoder_3=None, tokenizer_3=None, **more,
    )  # fmt: skip


def build_lcm() -> Any:
    pipe = build_sd_class("LatentConsistencyModelPipeline")
    unet = diffusers.UNet2DConditionModel(**{**build_unet().config, "time_cond_proj_dim": 16}).eval()
    components = {**pipe.components, "unet": unet, "scheduler": diffusers.LCMScheduler()}
    return diffusers.LatentConsistencyModelPipeline(**components, requires_safety_checker=False)


def build_if() -> Any:
    return diffusers.IFPipeline(
        tokenizer=build_byte_tokenizer(), text_encoder=build_t5(), scheduler=ddpm(),
        unet=diffusers.UNet2DConditionModel(**{**build_unet().config, "in_channels": 3, "out_channels": 6}).eval(),
        safety_checker=None, feature_extractor=None, watermarker=None, requires_safety_checker=False,
    )  # fmt: skip


def build_hunyuan(name: str = "HunyuanDiTPipeline", **more: Any) -> Any:
    tokenizer = build_byte_tokenizer()
    return getattr(diffusers, name)(
        vae=build_vae().eval(), scheduler=ddpm(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False, text_encoder=build_t5(), tokenizer=tokenizer,
        text_encoder_2=build_t5(), tokenizer_2=tokenizer,
        transformer=diffusers.HunyuanDiT2DModel(
            sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=2, in_channels=4,
            cross_attention_dim=32, cross_attention_dim_t5=32, pooled_projection_dim=16, hidden_size=16,
        ).eval(), **more,
    )  # fmt: skip


def build_pixart(name: str, **more: Any) -> Any:
    return getattr(diffusers, name)(
        tokenizer=build_byte_tokenizer(), text_encoder=build_t5(), vae=build_vae().eval(),
        scheduler=diffusers.DDIMScheduler(),
        transformer=diffusers.PixArtTransformer2DModel(
            sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=32,
            in_channels=4, cross_attention_dim=24, out_channels=8, use_additional_conditions=False,
        ).eval(), **more,
    )  # fmt: skip


def build_sana(name: str = "SanaPipeline", **more: Any) -> Any:
    return getattr(diffusers, name)(
        tokenizer=build_byte_tokenizer(), text_encoder=build_language_model(), scheduler=flow(),
        vae=diffusers.AutoencoderDC(
            latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
            encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), downsample_block_type="conv",
            upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu",
            scaling_factor=0.41407,
        ).eval(),
        transformer=diffusers.SanaTransformer2DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=4, num_layers=2,
            num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=32,
            sample_size=8, patch_size=1,
        ).eval(), **more,
    )  # fmt: skip


def build_auraflow() -> Any:
    return diffusers.AuraFlowPipeline(
        tokenizer=build_byte_tokenizer(), text_encoder=build_t5(), scheduler=flow(), vae=build_vae().eval(),
        transformer=diffusers.AuraFlowTransformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_mmdit_layers=1, num_single_dit_layers=1,
            attention_head_dim=8, num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=32,
            pos_embed_max_size=256,
        ).eval(),
    )  # fmt: skip


def build_flux_class(name: str, **settings: Any) -> Any:
    tokenizer = build_tokenizer()
    arguments = flux_settings(pooled_projection_dim=32, guidance_embeds=True, **settings)
    return getattr(diffusers, name)(
        transformer=diffusers.FluxTransformer2DModel(**arguments).eval(), scheduler=flow(), vae=build_shifted_vae(),
        text_encoder=build_text_encoder(tokenizer).eval(), tokenizer=tokenizer,
        text_encoder_2=build_t5(), tokenizer_2=build_byte_tokenizer(),
    )  # fmt: skip


def build_flux2_klein() -> Any:
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, latent_channels=4, norm_num_groups=4,
        sample_size=SIDE,
    ).eval()  # fmt: skip
    torch.nn.init.uniform_(vae.bn.running_mean)
    torch.nn.init.uniform_(vae.bn.running_var, 0.5, 2)
    return diffusers.Flux2KleinPipeline(
        transformer=diffusers.Flux2Transformer2DModel(
            **flux_settings(axes_dims_rope=(4, 4, 4, 4), joint_attention_dim=96, guidance_embeds=False)
        ).eval(),
        scheduler=flow(), vae=vae, text_encoder=build_language_model(layers=28), tokenizer=build_byte_tokenizer(),
    )  # fmt: skip


def build_chroma() -> Any:
    return diffusers.ChromaPipeline(
        transformer=diffusers.ChromaTransformer2DModel(
            **flux_settings(approximator_num_channels=16, approximator_hidden_dim=16, approximator_layers=1)
        ).eval(),
        scheduler=flow(), vae=build_shifted_vae(), text_encoder=build_t5(), tokenizer=build_byte_tokenizer(),
    )  # fmt: skip


def build_ovis() -> Any:
    return diffusers.OvisImagePipeline(
        transformer=diffusers.OvisImageTransformer2DModel(**flux_settings(out_channels=16)).eval(),
        scheduler=flow(), vae=build_shifted_vae(), text_encoder=build_language_model(),
        tokenizer=build_byte_tokenizer(),
    )  # fmt: skip


def build_lumina() -> Any:
    return diffusers.LuminaPipeline(
        transformer=diffusers.LuminaNextDiT2DModel(
            sample_size=4, patch_size=2, in_channels=4, hidden_size=4, num_layers=2, num_attention_heads=1,
            num_kv_heads=1, multiple_of=16, ffn_dim_multiplier=None, norm_eps=1e-5, learn_sigma=True, qk_norm=True,
            cross_attention_dim=32, scaling_factor=1.0,
        ).eval(),
        scheduler=flow(), vae=build_vae().eval(), text_encoder=build_language_model(), tokenizer=build_byte_tokenizer(),
    )  # fmt: skip


def build_lumina2() -> Any:
    return diffusers.Lumina2Pipeline(
        transformer=diffusers.Lumina2Transformer2DModel(
            sample_size=4, patch_size=2, in_channels=4, hidden_size=8, num_layers=2, num_attention_heads=1,
            num_kv_heads=1, multiple_of=16, axes_dim_rope=(4, 2, 2), axes_lens=(256, 128, 128), cap_feat_dim=32,
        ).eval(),
        scheduler=flow(), vae=build_shifted_vae(), text_encoder=build_language_model(),
        tokenizer=build_byte_tokenizer(),
    )  # fmt: skip


def build_cogview3() -> Any:
    return diffusers.CogView3PlusPipeline(
        transformer=diffusers.CogView3PlusTransformer2DModel(
            patch_size=2, in_channels=4, num_layers=1, attention_head_dim=4, num_attention_heads=2, out_channels=4,
            text_embed_dim=32, time_embed_dim=8, condition_dim=2, pos_embed_max_size=8, sample_size=8,
        ).eval(),
        scheduler=diffusers.CogVideoXDDIMScheduler(), vae=build_vae().eval(), text_encoder=build_t5(),
        tokenizer=build_byte_tokenizer(),
    )  # fmt: skip


def build_cogview4() -> Any:
    return diffusers.CogView4Pipeline(
        transformer=diffusers.CogView4Transformer2DModel(
            patch_size=2, in_channels=4, num_layers=1, attention_head_dim=4, num_attention_heads=4, out_channels=4,
            text_embed_dim=32, time_embed_dim=8, condition_dim=4,
        ).eval(),
        scheduler=flow(), vae=build_vae().eval(), text_encoder=build_language_model(), tokenizer=build_byte_tokenizer(),
    )  # fmt: skip


def build_qwen() -> Any:
    return diffusers.QwenImagePipeline(
        transformer=diffusers.QwenImageTransformer2DModel(
            patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=32, axes_dims_rope=(4, 4, 8),
        ).eval(),
        scheduler=flow(), vae=build_video_vae(), text_encoder=build_language_model(), tokenizer=build_byte_tokenizer(),
    )  # fmt: skip


def build_krea2() -> Any:
    return diffusers.Krea2Pipeline(
        transformer=diffusers.Krea2Transformer2DModel(
            in_channels=16, num_layers=1, attention_head_dim=16, num_attention_heads=2, num_key_value_heads=1,
            intermediate_size=32, timestep_embed_dim=16, text_hidden_dim=32, num_text_layers=2,
            text_num_attention_heads=2, text_num_key_value_heads=2, text_intermediate_size=32,
            num_layerwise_text_blocks=1, num_refiner_text_blocks=1, axes_dims_rope=(4, 6, 6),
        ).eval(),
        scheduler=flow(), vae=build_video_vae(), text_encoder=build_language_model(),
        tokenizer=build_byte_tokenizer(), text_encoder_select_layers=(1, 2),
    )  # fmt: skip


def build_z_image() -> Any:
    transformer = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2,
        n_kv_heads=2, cap_feat_dim=32, axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    ).eval()  # fmt: skip
    for name, parameter in transformer.named_parameters():
        if name.endswith("pad_token"):
            torch.nn.init.zeros_(parameter)
    return diffusers.ZImagePipeline(
        transformer=transformer, scheduler=flow(), vae=build_shifted_vae(), text_encoder=build_language_model(),
        tokenizer=build_byte_tokenizer(),
    )  # fmt: skip


def build_prx() -> Any:
    return diffusers.PRXPipeline(
        transformer=diffusers.PRXTransformer2DModel(
            patch_size=1, in_channels=4, context_in_dim=32, hidden_size=8, mlp_ratio=2.0, num_heads=2, depth=1,
            axes_dim=[2, 2],
        ).eval(),
        scheduler=flow(), vae=build_shifted_vae(), text_encoder=build_t5(), tokenizer=build_byte_tokenizer(),
        default_sample_size=512,
    )  # fmt: skip


def build_kandinsky3() -> Any:
    return diffusers.Kandinsky3Pipeline(
        unet=diffusers.Kandinsky3UNet(
            in_channels=4, time_embedding_dim=4, groups=2, attention_head_dim=4, layers_per_block=3,
            block_out_channels=(32, 64), cross_attention_dim=4, encoder_hid_dim=32,
        ).eval(),
        scheduler=ddpm(), movq=combined.build_movq(), text_encoder=build_t5(), tokenizer=build_byte_tokenizer(),
    )  # fmt: skip


def build_flux2() -> Any:
    source = build_flux2_klein()
    names = ("transformer", "scheduler", "vae", "tokenizer")
    components = {name: getattr(source, name) for name in names}
    return diffusers.Flux2Pipeline(**components, text_encoder=build_language_model(layers=31))


def build_z_image_omni() -> Any:
    return diffusers.ZImageOmniPipeline(**build_z_image().components, siglip=None, siglip_processor=None)


def build_empty(name: str) -> Any:
    """A pipeline without modules, for one that is refused by its signature alone."""
    kind = getattr(diffusers, name)
    return kind.__new__(kind)


SIZED = {"height": SIDE, "width": SIDE}
SHORT = {**SIZED, "max_sequence_length": 16}
SANA = {**SHORT, "height": 32, "width": 32, "use_resolution_binning": False, "complex_human_instruction": None}
PRIOR = {"prior_num_inference_steps": 2}
CONTROL = controlled.control_image()
CONTROLLED = {**SHORT, "control_image": CONTROL}
TRUE_GUIDANCE = {"true_cfg_scale": 2.0, "negative_prompt": "a cat"}
BUILDERS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "StableDiffusionPipeline": (build_sd_pipeline, {}),
    "StableDiffusionPAGPipeline": (lambda: build_sd_class("StableDiffusionPAGPipeline"), {}),
    "StableDiffusionXLPipeline": (build_sdxl, {}),
    "StableDiffusionXLPAGPipeline": (lambda: build_xl_class("StableDiffusionXLPAGPipeline"), {}),
    "StableDiffusionControlNetPipeline": (
        functools.partial(controlled.on_sd, "StableDiffusionControlNetPipeline"),
        {"image": CONTROL},
    ),
    "StableDiffusionControlNetPAGPipeline": (
        functools.partial(controlled.on_sd, "StableDiffusionControlNetPAGPipeline"),
        {"image": CONTROL},
    ),
    "StableDiffusionXLControlNetPipeline": (
        functools.partial(controlled.on_sdxl, "StableDiffusionXLControlNetPipeline"),
        {"image": CONTROL},
    ),
    "StableDiffusionXLControlNetPAGPipeline": (
        functools.partial(controlled.on_sdxl, "StableDiffusionXLControlNetPAGPipeline"),
        {"image": CONTROL},
    ),
    "StableDiffusionXLControlNetUnionPipeline": (controlled.union, {"control_image": CONTROL, "control_mode": 0}),
    "StableDiffusion3ControlNetPipeline": (lambda: controlled.sd3(build_sd3), {"control_image": CONTROL}),
    "StableDiffusion3Pipeline": (build_sd3, {}),
    "StableDiffusion3PAGPipeline": (
        lambda: build_sd3("StableDiffusion3PAGPipeline", pag_applied_layers="blocks.0"),
        {},
    ),
    "LatentConsistencyModelPipeline": (build_lcm, {}),
    "IFPipeline": (build_if, {}),
    "HunyuanDiTPipeline": (build_hunyuan, {**SIZED, "use_resolution_binning": False}),
    "HunyuanDiTPAGPipeline": (
        lambda: build_hunyuan("HunyuanDiTPAGPipeline", pag_applied_layers=["blocks.1"]),
        {**SIZED, "use_resolution_binning": False},
    ),
    "PixArtAlphaPipeline": (lambda: build_pixart("PixArtAlphaPipeline"), {**SHORT, "use_resolution_binning": False}),
    "PixArtSigmaPAGPipeline": (
        lambda: build_pixart("PixArtSigmaPAGPipeline", pag_applied_layers=["blocks.1"]),
        {**SHORT, "use_resolution_binning": False},
    ),
    "PixArtSigmaPipeline": (lambda: build_pixart("PixArtSigmaPipeline"), {**SHORT, "use_resolution_binning": False}),
    "SanaPipeline": (build_sana, SANA),
    "SanaPAGPipeline": (
        lambda: build_sana("SanaPAGPipeline", pag_applied_layers=["transformer_blocks.0"]),
        {name: value for name, value in SANA.items() if name != "max_sequence_length"},
    ),
    "AuraFlowPipeline": (build_auraflow, SHORT),
    "FluxPipeline": (lambda: build_flux_class("FluxPipeline"), SHORT),
    "FluxControlPipeline": (
        lambda: build_flux_class("FluxControlPipeline", in_channels=32, out_channels=16),
        CONTROLLED,
    ),
    "FluxControlNetPipeline": (
        lambda: controlled.flux(lambda: build_flux_class("FluxPipeline"), flux_settings()),
        CONTROLLED,
    ),
    "FluxKontextPipeline": (
        lambda: build_flux_class("FluxKontextPipeline"),
        {**SHORT, "_auto_resize": False, "max_area": SIDE * SIDE},
    ),
    "Flux2KleinPipeline": (build_flux2_klein, SHORT),
    "Flux2Pipeline": (build_flux2, SHORT),
    "Ideogram4Pipeline": (
        lambda: combined.build_ideogram(build_byte_tokenizer(), build_flux2_klein().vae),
        {**SHORT, "guidance_schedule": None, "guidance_scale": 4.0},
    ),
    "ChromaPipeline": (build_chroma, SHORT),
    "OvisImagePipeline": (build_ovis, SHORT),
    "LuminaPipeline": (build_lumina, {**SIZED}),
    "Lumina2Pipeline": (build_lumina2, SHORT),
    "CogView3PlusPipeline": (build_cogview3, SHORT),
    "CogView4Pipeline": (build_cogview4, SHORT),
    "QwenImagePipeline": (build_qwen, {**SHORT, **TRUE_GUIDANCE}),
    "QwenImageControlNetPipeline": (lambda: controlled.qwen(build_qwen), {**CONTROLLED, **TRUE_GUIDANCE}),
    "QwenImage21Pipeline": (lambda: combined.build_qwen21(build_byte_tokenizer()), {"height": 32, "width": 32}),
    "NucleusMoEImagePipeline": (
        lambda: combined.build_nucleus(build_byte_tokenizer(), build_video_vae()),
        SHORT,
    ),
    "Krea2Pipeline": (build_krea2, SHORT),
    "ZImagePipeline": (build_z_image, SHORT),
    "ZImageOmniPipeline": (build_z_image_omni, SHORT),
    "ZImageControlNetPipeline": (
        lambda: controlled.z_image(build_z_image, "ZImageControlNetPipeline"),
        CONTROLLED,
    ),
    "ZImageControlNetInpaintPipeline": (
        lambda: controlled.z_image(build_z_image, "ZImageControlNetInpaintPipeline"),
        {**CONTROLLED, "image": CONTROL, "mask_image": CONTROL},
    ),
    "PRXPipeline": (build_prx, {**SIZED, "use_resolution_binning": False}),
    "Kandinsky3Pipeline": (build_kandinsky3, SIZED),
    "KandinskyCombinedPipeline": (
        lambda: combined.build_kandinsky(build_byte_tokenizer()),
        {**PRIOR, "height": 64, "width": 64},
    ),
    "KandinskyV22CombinedPipeline": (combined.build_kandinsky22, {**PRIOR, "height": 64, "width": 64}),
    "StableCascadeCombinedPipeline": (combined.build_cascade, {**PRIOR, "height": 128, "width": 128}),
    "WuerstchenCombinedPipeline": (combined.build_wuerstchen, {**PRIOR, "height": 128, "width": 128}),
}
EMPTY = ("HeliosPipeline", "HeliosPyramidPipeline")
BUILDERS |= {name: (functools.partial(build_empty, name), {}) for name in EMPTY}
"""A pipeline of each family, and what its call takes besides prompt, guidance and steps."""


NOT_BUILT = {
    "CogView4ControlPipeline": "not tried: it draws the latents of its control image from torch's global random state, "
    "so no seed gives an image again",
    "GlmImagePipeline": "not tried: a language model writes its image tokens first, and has no tiny stand-in",
}
"""Pipelines of the mapping that are not built here, and why."""


def classes_in_mapping() -> list[str]:
    """Names of all text-to-image pipelines that the installed diffusers lists, sorted."""
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    return sorted({kind.__name__ for kind in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()})


@functools.cache
def build(name: str) -> tuple[Any, dict[str, Any]]:
    """One of BUILDERS with weights of one seed, for reading only, and the arguments of its call."""
    make, arguments = BUILDERS[name]
    torch.manual_seed(0)
    with quiet():
        pipe = make()
    if name not in EMPTY:
        pipe.set_progress_bar_config(disable=True)
    return pipe, arguments
