"""Images of the mini world halfway through clip-mini's tower, kept so that many trainings can share them.

The first two stages of the tower are the same for all and do not learn; what they make of an image and of its
perturbed copies is computed once. What learns is the rest, as a scorer of its own that takes these maps for
images, so that `train.step` trains it as it trains any other. Knows images and towers; knows no labels.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sp_rerank.scorers.clip import DualEncoder
from sp_rerank.storage.images import open_image
from sp_rerank.storage.perturbation import RATIOS, flip_and_crop
from sp_rerank.train.mini.images import read_captions

AT_ONCE = 64
COPIES = 2  # of an image, each perturbed at random
MIN_RATIO = 0.85  # of a copy's sides

Views = Callable[[Image.Image, random.Random], list[Image.Image]]
"""An image and a source of randomness in; the image itself and its versions out."""


class Tail(nn.Module):
    """The third and fourth stage and the attention pool of a tower; takes maps (n, 8 width, 16, 16)."""

    def __init__(self, visual: Any):
        super().__init__()
        self.layer1, self.layer2 = nn.Sequential(), nn.Sequential()
        self.layer3, self.layer4, self.attnpool = visual.layer3, visual.layer4, visual.attnpool

    def forward(self, maps: Tensor) -> Tensor:
        """(n, d) embeddings, not normalized."""
        return self.attnpool(self.layer4(self.layer3(maps.to(self.layer3[0].conv1.weight.dtype))))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Not needed here."""


def tail_of(scorer: DualEncoder) -> DualEncoder:
    """A copy of a scorer that takes maps for images."""
    whole: Any = copy.deepcopy(scorer)
    whole.clip.visual = Tail(whole.clip.visual)
    return whole


def with_tail(scorer: DualEncoder, tail: DualEncoder) -> DualEncoder:
    """A copy of a scorer with what a tail of it has learned."""
    whole: Any = copy.deepcopy(scorer)
    whole.load_state_dict(tail.state_dict(), strict=False)
    return whole


@torch.inference_mode()
def maps_of(scorer: DualEncoder, images: Sequence[Image.Image]) -> Tensor:
    """(n, 8 width, 16, 16) bfloat16: images after the second stage."""
    visual: Any = scorer.clip.visual
    made = []
    for first in range(0, len(images), AT_ONCE):
        pixels = scorer.preprocess(images[first : first + AT_ONCE], device="cpu")
        with torch.autocast("cpu", torch.bfloat16):
            made.append(visual.layer2(visual.layer1(visual.stem(pixels))).bfloat16())
    return torch.cat(made)


def as_it_is(image: Image.Image, _rng: random.Random) -> list[Image.Image]:
    """One version."""
    return [image]


def under_hpcc(image: Image.Image, _rng: random.Random) -> list[Image.Image]:
    """The image, and HP&CC at each ratio of the paper's table."""
    return [image, *(flip_and_crop(image, ratio) for ratio in RATIOS)]


def with_copies(image: Image.Image, rng: random.Random) -> list[Image.Image]:
    """The image and COPIES perturbed ones."""
    return [image, *(_perturbed(image, rng) for _ in range(COPIES))]


def _perturbed(image: Image.Image, rng: random.Random) -> Image.Image:
    return flip_and_crop(image, MIN_RATIO + (1 - MIN_RATIO) * rng.random(), flip=rng.random() < 0.5)


def cached_maps(scorer: DualEncoder, folder: Path, kept: Path, views: Views, prompts: int | None = None) -> Tensor:
    """(prompts, images, versions, 8 width, 16, 16) bfloat16 of a domain's folder; made once and kept in a file."""
    if kept.exists():
        return load_file(kept)["maps"]
    count, made = len(read_captions(folder)[:prompts]), torch.empty(0)
    for number in range(count):
        versions = [
            views(open_image(file), random.Random(f"{file.name}"))
            for file in sorted(folder.glob(f"{number:04}-[0-9][0-9].png"))
        ]
        flat = maps_of(scorer, [version for image in versions for version in image])
        if not number:
            made = flat.new_empty(count, len(versions), len(versions[0]), *flat.shape[1:])  # once: these are gigabytes
        made[number] = flat.unflatten(0, (len(versions), len(versions[0])))
    kept.parent.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_suffix(".part")
    save_file({"maps": made}, temporary)
    temporary.replace(kept)
    return load_file(kept)["maps"]
