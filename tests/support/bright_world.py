"""Preferences in which the brighter image of two is the better one, and a dual encoder small enough to learn that."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sp_rerank.scorers.clip import DualEncoder
from sp_rerank.scorers.preprocess import Preprocess
from sp_rerank.train.data import Loader, PairOrder, Perturbations
from sp_rerank.train.preferences import ImageReader, ImageSource, PreferenceGroup
from sp_rerank.train.recipe import Recipe

MERGES = ["l e", "le m", "lem o", "lemo n</w>"]
PROMPTS = ("a lemon", "two lemons", "no lemon", "lemon, lemon", "a cat", "b", "", "emoji 🍋")


def make_encoder(dropout: float = 0.0, **changes: Any) -> DualEncoder:
    """Images of 32 pixels, two layers a tower; the same random weights each time."""
    settings: dict[str, Any] = {
        "name": "tiny",
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16, "patch_dropout": dropout,
        },
        "text_cfg": {"context_length": 16, "vocab_size": 514 + len(MERGES), "width": 32, "heads": 2, "layers": 2},
        "quick_gelu": False,
        "preprocess": Preprocess(32).to_dict(),
        "score_scale": "cosine",
        "license": "none",
        "source": "random weights",
        "merges": MERGES,
    }  # fmt: skip
    torch.manual_seed(0)
    return DualEncoder(**(settings | changes)).eval()


def make_groups(folder: Path, prompts: int = 6, images: int = 5, seed: int = 0) -> list[PreferenceGroup]:
    """Groups of noisy images; of each group two images tie."""
    rng = np.random.default_rng(seed)
    groups = []
    for p in range(prompts):
        levels = rng.permutation(np.linspace(40, 215, images))
        sources = []
        for i, level in enumerate(levels):
            height, width = rng.integers(30, 60, 2)
            pixels = np.clip(rng.normal(level, 20, (height, width, 3)), 0, 255).astype(np.uint8)
            path = folder / f"{seed}-{p}-{i}.png"
            Image.fromarray(pixels).save(path)
            sources.append(ImageSource(path))
        ranks = [max(rank, 2) for rank in (-levels).argsort().argsort() + 1]
        groups.append(PreferenceGroup.ranked(PROMPTS[p % len(PROMPTS)], sources, ranks))
    return groups


def make_recipe(**changes: Any) -> Recipe:
    settings: dict[str, Any] = {
        "name": "bright", "base": "none", "steps": 25, "batch_size": 8, "learning_rate": 1e-3,
        "warmup_steps": 3, "evaluate_every": 10, "save_every": 13, "ai_weight": 0.1, "temperature": 5.0,
    }  # fmt: skip
    settings |= changes
    return Recipe(**({"stage_1_steps": min(10, settings["steps"])} | settings))


def make_loader(
    groups: list[PreferenceGroup],
    scorer: DualEncoder,
    total: int | None = None,
    share: tuple[int, int] = (0, 1),
    **changes: Any,
) -> Loader:
    order = PairOrder(
        groups, batch_size=changes.pop("batch_size", 8), pairs_per_prompt=changes.pop("pairs_per_prompt", 1), seed=0
    )
    settings: dict[str, Any] = {
        "seed": 0,
        "copies": True,
        "augment": False,
        "min_crop_ratio": 0.9,
        "flip_probability": 1.0,
    }
    return Loader(groups, order, scorer, ImageReader(total), Perturbations(**(settings | changes)), share)
