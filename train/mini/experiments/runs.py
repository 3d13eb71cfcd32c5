"""Trainings on kept maps (`maps`): the losses, stages and optimizer of `sp-rerank train`, without its images.

Knows maps, ranks and recipes; knows no truth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sp_rerank.scorers.clip import DualEncoder
from sp_rerank.train.data import PairBatch
from sp_rerank.train.model import freeze
from sp_rerank.train.recipe import Recipe
from sp_rerank.train.step import TrainStep


@dataclass(frozen=True, slots=True)
class Ranked:
    """What is learned from.

    Attributes:
        captions: of the prompts.
        maps: (images, versions, C, 16, 16) a prompt; version 0 is the image, the others its copies.
        ranks: (prompts, rankings, images), 1 is the best.
    """

    captions: Sequence[str]
    maps: Sequence[Tensor]
    ranks: np.ndarray


def train(
    recipe: Recipe, tail: DualEncoder, data: Ranked, every: int, look: Callable[[int, DualEncoder], None]
) -> None:
    """Train a tail in place; `look` sees it after every so many steps, in evaluation mode.

    A step takes `recipe.batch_size` pairs, all pairs of a prompt together.
    """
    images = len(data.maps[0])
    pairs = list(combinations(range(images), 2))
    groups = recipe.batch_size // len(pairs)
    tail.train()
    freeze(tail, recipe.trainable_image_blocks, recipe.trainable_text_blocks)
    take = TrainStep(recipe, tail)
    rng = np.random.default_rng(recipe.seed)
    order: list[int] = []
    for step in range(recipe.steps):
        while len(order) < groups:
            order += rng.permutation(len(data.captions)).tolist()
        chosen, order = order[:groups], order[groups:]
        take(step, batch_of(recipe, tail, data, chosen, pairs, rng))
        if (step + 1) % every == 0 or step + 1 == recipe.steps:
            tail.eval()
            look(step + 1, tail)
            tail.train()
    tail.eval()


def batch_of(
    recipe: Recipe,
    tail: DualEncoder,
    data: Ranked,
    chosen: Sequence[int],
    pairs: Sequence[tuple[int, int]],
    rng: np.random.Generator,
) -> PairBatch:
    """All pairs of some prompts, each image with one of its copies where the recipe weighs L_ai."""
    images, versions = data.maps[0].shape[:2]
    maps = torch.cat([data.maps[i] for i in chosen])
    rows = torch.arange(len(maps))

    def copies() -> Tensor:
        return maps[rows, torch.from_numpy(rng.integers(1, versions, len(maps)))]

    copied = recipe.ai_weight > 0
    shown = copies() if recipe.augment else maps[:, 0]
    first, second = torch.tensor(pairs).T
    starts = torch.arange(len(chosen)).repeat_interleave(len(pairs)) * images
    ranking = rng.integers(0, data.ranks.shape[1])
    ranks = torch.from_numpy(data.ranks[list(chosen), ranking])
    better = (ranks[:, first] < ranks[:, second]).float() + 0.5 * (ranks[:, first] == ranks[:, second]).float()
    return PairBatch(
        pixels=torch.cat([shown, copies()]) if copied else shown,
        copied=copied,
        tokens=tail.tokenize([data.captions[i] for i in chosen]),
        first=first.repeat(len(chosen)) + starts,
        second=second.repeat(len(chosen)) + starts,
        prompt=torch.arange(len(chosen)).repeat_interleave(len(pairs)),
        label=better.flatten(),
        names=tuple(f"{i}-{j}" for i in chosen for j in range(images)),
    )


@torch.inference_mode()
def scores(tail: DualEncoder, captions: Sequence[str], maps: Tensor) -> np.ndarray:
    """(versions, prompts, images) cosines of maps (prompts, images, versions, C, 16, 16)."""
    clip: Any = tail.clip
    texts = tail.encode_text(list(captions))
    rows = []
    for text, mine in zip(texts, maps, strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            embedded = clip.encode_image(mine.flatten(0, 1))
        rows.append((F.normalize(embedded.float(), dim=-1) @ text).view(mine.shape[:2]))
    return torch.stack(rows).permute(2, 0, 1).double().numpy()
