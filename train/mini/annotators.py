"""python -m sp_rerank.train.mini.annotators [--out build/mini/preferences]

Preferences of simulated people over images of the mini world, in the layouts of published data sets, for
`sp-rerank train`, `evaluate` and `robustness`. The images of train.json are in train/ beside it, and so on:

    train.json         images of the mini model, each prompt ranked by four annotators   (ImageReward's layout)
    validation.json    other prompts; the mean order of ten annotators         (HPD v2's test layout)
    test.json          other prompts; the judge's own order, ten annotators              (the same)
    other.json         a second domain: drawn scenes, right and wrong, of combinations that nothing was trained on,
                       and a pool of annotators that weighs other things                 (the same)

An annotator is the judge with noise: it ranks by the judge's utility plus Gumbel noise, so that of two images one is
preferred with the probability of Bradley and Terry's model. The noise is such that two annotators agree on 65 %
of the pairs of a domain, as people do on ImageReward. Everything is simulated, and a scorer sees nothing of the judge
but these ranks. Prompts that say left or right are left out: mirroring an image should be a change that does not
matter. A quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import expit
from torch import Tensor
from torch.nn import functional as F

from sp_rerank import load_pipeline
from sp_rerank.diffusion.loading import find_dtype
from sp_rerank.storage.atomic import write
from sp_rerank.storage.images import to_images
from sp_rerank.train.mini.grammar import ACCESSORIES, BACKGROUNDS, OBJECTS, Description, draw_description, parse
from sp_rerank.train.mini.judge import TERMS, Judge, load_judge, make_images
from sp_rerank.train.mini.scenes import draw_scene
from sp_rerank.train.mini.training import pixels

SEED = 5_000_000  # of the images; no stage of the mini world and no measurement uses these
GROUPS = {"train": 300, "validation": 60, "test": 150, "other": 150}
IMAGES = 8  # a group
OPINIONS = {"train": 4, "validation": 10, "test": 10, "other": 10}  # annotators a group
AGREEMENT = 0.65  # of two annotators
QUALITIES = ((16, 2.5), (16, 6.0), (8, 2.5), (6, 1.0))
"""Steps and guidance of the mini model, for as many images of a group each."""

WEIGHTS = {
    "mini": TERMS,
    "other": {"objects": 0.5, "accessory": 1.5, "background": 2.0, "place": 1.5, "realism": 1.0},
}
"""What each term of the judge counts in the utility of a pool of annotators."""


@dataclass(frozen=True, slots=True)
class Shown:
    """The images of one prompt, (n, 3, 64, 64) in [0, 1]."""

    caption: str
    images: Tensor


def draw_captions(rng: random.Random, n: int, *, held_out: bool, known: set[str]) -> list[str]:
    """n distinct captions that are not known yet; they become known."""
    captions: list[str] = []
    while len(captions) < n:
        description = draw_description(rng, held_out=held_out)
        if description.relation in ("left", "right") or description.caption in known:
            continue
        known.add(description.caption)
        captions.append(description.caption)
    return captions


def draw_images(pipe: Any, captions: Sequence[str], seed: int) -> Iterator[Shown]:
    """Images of the mini model at several qualities, one in four of them damaged."""
    each = IMAGES // len(QUALITIES)
    repeated = [caption for caption in captions for _ in range(each)]
    by_quality = [
        make_images(pipe, repeated, seed + 100_000 * i, steps=steps, guidance_scale=guidance)
        for i, (steps, guidance) in enumerate(QUALITIES)
    ]
    rng = random.Random(seed)
    for i, caption in enumerate(captions):
        images = torch.cat([made[i * each : (i + 1) * each] for made in by_quality])
        for j in rng.sample(range(IMAGES), IMAGES // 4):
            images[j] = damage(images[j], rng)
        yield Shown(caption, images)


def draw_domain(captions: Sequence[str], seed: int) -> Iterator[Shown]:
    """Drawn scenes: four as asked for, two of these damaged, and four that get something wrong."""
    rng = random.Random(seed)
    for caption in captions:
        asked = parse(caption)
        meant = [asked] * (IMAGES // 2) + [wrong(asked, rng) for _ in range(IMAGES - IMAGES // 2)]
        images = pixels([draw_scene(description, rng) for description in meant]) / 2 + 0.5
        for j in range(IMAGES // 4, IMAGES // 2):
            images[j] = damage(images[j], rng)
        yield Shown(caption, images)


def wrong(asked: Description, rng: random.Random) -> Description:
    """The description with one thing changed: the object, the second one, the number, the accessory or the place."""
    others = [name for name in OBJECTS if name not in (asked.first, asked.second)]
    choices = [replace(asked, first=rng.choice(others))]
    places = [place for place in BACKGROUNDS if place != asked.background]
    choices += [replace(asked, background=rng.choice(places))] if asked.background else []
    if asked.second:
        choices += [replace(asked, second=rng.choice(others)), replace(asked, second=None, relation=None)]
    elif asked.count > 1:
        choices += [replace(asked, count=5 - asked.count), replace(asked, count=1)]
    elif asked.accessory:
        worn = [name for name in ACCESSORIES if name != asked.accessory]
        choices += [replace(asked, accessory=rng.choice(worn)), replace(asked, accessory=None)]
    return rng.choice(choices)


def damage(image: Tensor, rng: random.Random) -> Tensor:
    """(3, H, W) in [0, 1], blurred, noisy, faded, or with a gray patch."""
    kind = rng.choice(("blur", "noise", "fade", "patch"))
    if kind == "blur":
        small = F.avg_pool2d(image[None], rng.choice((2, 3)), ceil_mode=True)
        return F.interpolate(small, size=image.shape[1:], mode="bilinear")[0]
    if kind == "noise":
        generator = torch.Generator().manual_seed(rng.randrange(2**31))
        return (image + 0.12 * torch.randn(image.shape, generator=generator)).clamp(0, 1)
    if kind == "fade":
        return image + 0.5 * (image.mean() - image)
    side = image.shape[-1]
    size, left, top = rng.randrange(side // 5, side // 3), rng.randrange(side * 2 // 3), rng.randrange(side * 2 // 3)
    patched = image.clone()
    patched[:, top : top + size, left : left + size] = rng.random()
    return patched


def utilities(judge: Judge, shown: Sequence[Shown], weights: dict[str, float]) -> np.ndarray:
    """(groups, images): what each image is worth to a pool of annotators, before noise."""
    factors = torch.tensor(list(weights.values()))
    captions = [group.caption for group in shown for _ in group.images]
    terms = judge.terms(captions, torch.cat([group.images for group in shown]))
    return (terms @ factors).view(len(shown), -1).double().numpy()


def noise_for(utility: np.ndarray, agreement: float = AGREEMENT) -> float:
    """The scale of the Gumbel noise with which two annotators agree on such a share of all pairs of a group.

    The difference of two Gumbel variables is logistic, so one prefers a to b with p = sigmoid((u_a - u_b) / scale),
    and two agree with p^2 + (1 - p)^2.

    Args:
        utility: (groups, images).
        agreement: above .5 and below 1.
    """
    first, second = np.triu_indices(utility.shape[1], 1)
    gaps = utility[:, first] - utility[:, second]

    def beyond(logarithm: float) -> float:
        p = expit(gaps / np.exp(logarithm))
        return float((p**2 + (1 - p) ** 2).mean() - agreement)

    root: Any = brentq(beyond, -10, 10)
    return float(np.exp(root))


def opinions(utility: np.ndarray, scale: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """(groups, n, images) ranks of n annotators a group, 1 is the best."""
    noisy = utility[:, None] + scale * rng.gumbel(size=(len(utility), n, utility.shape[1]))
    return ranks(noisy)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks along the last axis, 1 is the highest value."""
    return (-values).argsort(axis=-1, kind="stable").argsort(axis=-1, kind="stable") + 1


def learning_entries(caption: str, files: list[str], ranked: np.ndarray) -> list[dict[str, Any]]:
    """ImageReward's layout, an entry an annotator.

    Args:
        caption: the prompt.
        files: the images' names.
        ranked: (annotators, images).
    """
    return [{"prompt": caption, "generations": files, "ranking": ranks.tolist()} for ranks in ranked]


def testing_entries(caption: str, files: list[str], ranked: np.ndarray, order: np.ndarray) -> list[dict[str, Any]]:
    """HPD v2's test layout: one entry with all opinions; `order` (images,) is the rank that counts."""
    annotations = [{"rank": ranks.tolist(), "user_hash": f"simulated-{k}"} for k, ranks in enumerate(ranked)]
    return [{"prompt": caption, "image_path": files, "rank": order.tolist(), "raw_annotations": annotations}]


def write_domain(out: Path, name: str, shown: Sequence[Shown], utility: np.ndarray, ranked: np.ndarray) -> None:
    """OUT/NAME.json, and its images under OUT/NAME."""
    folder, entries = out / name, []
    folder.mkdir(parents=True, exist_ok=True)
    for i, group in enumerate(shown):
        files = [f"{i:04}-{j}.png" for j in range(len(group.images))]
        for file, image in zip(files, to_images(group.images), strict=True):
            image.save(folder / file)
        if name == "train":
            entries += learning_entries(group.caption, files, ranked[i])
        else:  # a choice among steps must not see the judge himself
            order = ranks(-ranked[i].mean(axis=0) if name == "validation" else utility[i])
            entries += testing_entries(group.caption, files, ranked[i], order)
    write(out / f"{name}.json", json.dumps(entries, indent=1).encode())


def main(out: Path) -> None:
    """Draw everything and write it to a folder."""
    rng, known, scales = random.Random(SEED), set[str](), dict[str, float]()
    judge, pipe = load_judge(), load_pipeline("mini", dtype=find_dtype("auto", "mini", "cpu"))
    for number, (name, n) in enumerate(GROUPS.items()):
        pool, seed = "other" if name == "other" else "mini", SEED + 1_000_000 * number
        captions = draw_captions(rng, n, held_out=pool == "other", known=known)
        drawn = draw_domain(captions, seed) if pool == "other" else draw_images(pipe, captions, seed)
        shown = [Shown(group.caption, (group.images * 255).round() / 255) for group in drawn]  # as files hold them
        utility = utilities(judge, shown, WEIGHTS[pool])
        if pool not in scales:
            scales[pool] = noise_for(utility)
        ranked = opinions(utility, scales[pool], OPINIONS[name], np.random.default_rng(seed))
        write_domain(out, name, shown, utility, ranked)
        print(
            f"{name}: {n} prompts with {IMAGES} images; noise {scales[pool]:.2f}, utilities spread {utility.std():.2f}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/mini/preferences"))
    main(parser.parse_args().out)
