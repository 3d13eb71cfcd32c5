"""A tiny Stable Diffusion with random weights in the real layout, 16x16 pixels, and a tiny scorer that is a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from support.tiny import build_text_encoder, build_unet, build_vae
from transformers import CLIPTokenizer

from sp_rerank.diffusion.loading import MINI
from sp_rerank.pipelines import StableDiffusionBestOfNPipeline
from sp_rerank.scorers.brightness import BrightnessScorer
from sp_rerank.scorers.clip import DualEncoder
from sp_rerank.scorers.preprocess import Preprocess


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors as small as these only wait for a second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def components() -> dict[str, Any]:
    """What a StableDiffusionPipeline is made of; the same weights each time."""
    tokenizer = CLIPTokenizer.from_pretrained(Path(MINI) / "tokenizer")
    torch.manual_seed(0)
    return {
        "unet": build_unet(),
        "vae": build_vae().eval(),
        "text_encoder": build_text_encoder(tokenizer).eval(),
        "tokenizer": tokenizer,
        "scheduler": DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


@pytest.fixture
def quiet() -> Callable[[Any], Any]:
    """Switch off a pipeline's progress bars."""

    def switch(pipe: Any) -> Any:
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return switch


@pytest.fixture
def stock(components: dict[str, Any], quiet: Callable[[Any], Any]) -> StableDiffusionPipeline:
    return quiet(StableDiffusionPipeline(**components))


@pytest.fixture
def pipe(components: dict[str, Any], quiet: Callable[[Any], Any]) -> StableDiffusionBestOfNPipeline:
    """Ours around the same modules; the lightest image wins."""
    return quiet(StableDiffusionBestOfNPipeline(**components, scorer=BrightnessScorer()))


@pytest.fixture
def encoder() -> DualEncoder:
    """A scorer that is a model, with random weights."""
    torch.manual_seed(1)
    return DualEncoder(
        name="tiny",
        embed_dim=8,
        vision_cfg={"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
        text_cfg={"context_length": 16, "vocab_size": 514, "width": 16, "heads": 2, "layers": 1},
        quick_gelu=False,
        preprocess=Preprocess(16).to_dict(),
        score_scale="cosine",
        license="none",
        source="random weights",
        merges=[],
    ).eval()
