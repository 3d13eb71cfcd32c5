"""Tiny dual encoders with random weights: the real class, the real tokenizer, two layers."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sp_rerank.scorers.clip import DualEncoder
from sp_rerank.scorers.preprocess import Preprocess

MERGES = ["l e", "le m", "lem o", "lemo n</w>"]


@pytest.fixture(scope="session")
def make_encoder() -> Callable[..., DualEncoder]:
    """The constructor with defaults; by default a vocabulary of its own, images of 64 pixels, patches of 8."""

    def make(**changes: Any) -> DualEncoder:
        settings: dict[str, Any] = {
            "name": "tiny",
            "embed_dim": 16,
            "vision_cfg": {"image_size": 64, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
            "text_cfg": {"context_length": 77, "vocab_size": 514 + len(MERGES), "width": 32, "heads": 2, "layers": 2},
            "quick_gelu": False,
            "preprocess": Preprocess(64).to_dict(),
            "score_scale": "cosine",
            "license": "none",
            "source": "random weights",
            "merges": MERGES,
        }
        torch.manual_seed(0)
        return DualEncoder(**(settings | changes)).eval()

    return make


@pytest.fixture
def encoder(make_encoder: Callable[..., DualEncoder]) -> DualEncoder:
    return make_encoder()


@pytest.fixture(scope="session")
def pictures() -> Sequence[Image.Image]:
    """Seven noisy RGB images of odd sizes, none more than twice as high as wide."""
    rng = np.random.default_rng(0)
    sizes = ((64, 64), (63, 65), (1, 1), (301, 17), (100, 199), (64, 128), (513, 512))
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes]
