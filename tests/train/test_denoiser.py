"""The pipeline that the mini world's denoiser becomes: what its configurations must name for others to load it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline

from sp_rerank import load_pipeline
from sp_rerank.diffusion.loading import MINI
from sp_rerank.train.mini.denoiser import build_scheduler, build_text_encoder, build_unet, save_pipeline
from sp_rerank.train.mini.vocabulary import build_tokenizer

STEPS = 20
VERSIONS = ("transformers_version", "_diffusers_version")
CAPTIONS = ["a lemon on the beach", "a penguin in the snow", "a rocket under the night sky"]


def draw(scheduler: str | None) -> torch.Tensor:
    pipe = load_pipeline("mini", scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(seed) for seed in range(len(CAPTIONS))]
    return pipe(CAPTIONS, generator=noise, num_inference_steps=STEPS, guidance_scale=2.5, output_type="pt").images


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers, with numpy 2.4
def test_schedulers_give_alike_pictures():
    """Mean differences .006 and .004; .35 where `clip_sample` is not named and DDIM cuts the latents to [-1, 1]."""
    pndm, ddim, solver = draw(None), draw("DDIM"), draw("DPMSolverMultistep")
    assert (ddim - pndm).abs().mean() < 0.03
    assert (solver - pndm).abs().mean() < 0.03


def test_the_configurations_of_the_embedded_pipeline():
    folder = Path(MINI)
    assert json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["clip_sample"] is False
    assert json.loads((folder / "text_encoder" / "config.json").read_text())["dtype"] == "float32"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("denoiser") / "pipeline"
    tokenizer = build_tokenizer()
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(32,), norm_num_groups=8),
        text_encoder=build_text_encoder(len(tokenizer)),
        tokenizer=tokenizer,
        unet=build_unet(),
        scheduler=build_scheduler(),
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    save_pipeline(pipe, folder)
    return folder


@pytest.mark.parametrize("config", ["scheduler/scheduler_config.json", "text_encoder/config.json"])
def test_the_stage_writes_what_is_embedded(saved, config):
    written, embedded = (json.loads((folder / config).read_text()) for folder in (saved, Path(MINI)))
    assert {**written, **dict.fromkeys(VERSIONS)} == {**embedded, **dict.fromkeys(VERSIONS)}


def test_without_a_dtype_everything_is_float32(saved):
    loaded = StableDiffusionPipeline.from_pretrained(saved)
    assert {loaded.unet.dtype, loaded.vae.dtype, loaded.text_encoder.dtype} == {torch.float32}
