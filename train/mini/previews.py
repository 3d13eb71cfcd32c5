"""python -m sp_rerank.train.mini.previews [--out build/mini/previews] [--jobs 2]

Preferences over images whose previews are kept, for a scorer that shall judge an image before it is finished
(`sp-rerank train mini-noise-aware`): DPM-Solver++ at several qualities, a quarter of the images damaged, ranked by the
annotators of `sp_rerank.train.mini.annotators`, in ImageReward's layout. Beside an image NAME.png that was not damaged
lie NAME.preview-1.png and -2, what the model predicted after shares of its steps. No prompt of the other files'
validation or test is among them. Everything is simulated. Blocks of images that are there already are not made again.
Twenty minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from sp_rerank import load_pipeline
from sp_rerank.diffusion.loading import find_dtype
from sp_rerank.diffusion.previews import Previews
from sp_rerank.diffusion.schedulers import predict_x0
from sp_rerank.storage.atomic import write
from sp_rerank.storage.images import open_image, to_images
from sp_rerank.train.mini.annotators import (
    GROUPS,
    IMAGES,
    SEED,
    WEIGHTS,
    Shown,
    damage,
    draw_captions,
    learning_entries,
    noise_for,
    opinions,
    utilities,
)
from sp_rerank.train.mini.judge import load_judge, make_images

PROMPTS = 1200  # of which those of the other files' validation and test are left out
BLOCK = 10  # prompts that are made at once: of each quality as many images as the mini model makes best together
ANNOTATORS = 4
QUALITIES = ((12, 2.5), (12, 6.0), (8, 2.5), (6, 1.0))
"""Steps of DPM-Solver++ and guidance of the mini model, for as many images of a prompt each."""
LOOKED_AT = (0.35, 0.55)
"""The shares of the steps after which previews are kept: where a search looks."""


class WatchedSolver(DPMSolverMultistepScheduler):
    """DPM-Solver++ that remembers what the model predicted at each step of the last call.

    Attributes:
        predicted: (b, 4, 16, 16) finished latents a step.
    """

    predicted: list[Tensor]

    def set_timesteps(self, *args: Any, **more: Any) -> None:
        """Begin a call."""
        super().set_timesteps(*args, **more)
        self.predicted = []

    def step(self, model_output: Any, timestep: Any, sample: Any, *args: Any, **more: Any) -> Any:
        """Take a step and remember."""
        output = super().step(model_output, timestep, sample, *args, **more)
        self.predicted.append(predict_x0(self, output, model_output, timestep, sample))
        return output


@dataclass(frozen=True, slots=True)
class Block:
    """Some prompts whose images are made together.

    Attributes:
        first: the number of the first one.
        captions: of the prompts.
        folder: where the images go.
    """

    first: int
    captions: tuple[str, ...]
    folder: Path

    def files(self, place: int) -> list[str]:
        """The names of the images of a prompt, counted from 0 in the block."""
        return [f"{self.first + place:04}-{j}.png" for j in range(IMAGES)]


@dataclass(frozen=True, slots=True)
class Made:
    """The images of a prompt, (8, 3, 64, 64) in [0, 1], and of each that was not damaged the two previews, by index."""

    images: Tensor
    previews: dict[int, Tensor]


def blocks(out: Path) -> list[Block]:
    """All prompts in blocks, without a block that holds one of the other files' validation or test."""
    # the other files draw theirs from the same place on, the training set's first
    captions = draw_captions(random.Random(SEED), PROMPTS, held_out=False, known=set())
    learned = GROUPS["train"]
    tested = set(captions[learned : learned + GROUPS["validation"] + GROUPS["test"]])
    every = [Block(at, tuple(captions[at : at + BLOCK]), out / "images") for at in range(0, PROMPTS, BLOCK)]
    return [block for block in every if not tested & set(block.captions)]


def draw(pipe: Any, captions: Sequence[str], seed: int) -> Iterator[Made]:
    """Images and previews of each prompt; the pipeline has a `WatchedSolver`."""
    each = IMAGES // len(QUALITIES)
    repeated = [caption for caption in captions for _ in range(each)]
    made, seen = [], []
    for i, (steps, guidance) in enumerate(QUALITIES):
        made.append(make_images(pipe, repeated, seed + 100_000 * i, steps=steps, guidance_scale=guidance))
        predicted = [pipe.scheduler.predicted[round(share * steps) - 1] for share in LOOKED_AT]
        seen.append(torch.stack([Previews(pipe).decode(latents) for latents in predicted], dim=1))
    rng = random.Random(seed)
    for i in range(len(captions)):
        mine = slice(i * each, (i + 1) * each)
        images, previews = (torch.cat([some[mine] for some in one]) for one in (made, seen))
        damaged = rng.sample(range(IMAGES), IMAGES // 4)
        for j in damaged:
            images[j] = damage(images[j], rng)
        yield Made(images, {j: previews[j] for j in range(IMAGES) if j not in damaged})


def make(block: Block) -> None:
    """The files of a block, unless they are there; the last one to be written is the last image."""
    if (block.folder / block.files(len(block.captions) - 1)[-1]).exists():
        return
    block.folder.mkdir(parents=True, exist_ok=True)
    for i, made in enumerate(draw(_pipeline(), block.captions, SEED + IMAGES // len(QUALITIES) * block.first)):
        files = block.files(i)
        for j, previews in made.previews.items():
            for k, image in enumerate(to_images(previews), start=1):
                image.save(block.folder / files[j].replace(".png", f".preview-{k}.png"))
        for file, image in zip(files, to_images(made.images), strict=True):
            temporary = block.folder / f"{file}.part"
            image.save(temporary, format="PNG")
            temporary.replace(block.folder / file)


@cache
def _pipeline() -> Any:
    pipe = load_pipeline("mini", dtype=find_dtype("auto", "mini", "cpu"))
    pipe.scheduler = WatchedSolver.from_config(pipe.scheduler.config)
    return pipe


def read(block: Block) -> list[Shown]:
    """The images of a block as its files hold them."""
    shown = []
    for i, caption in enumerate(block.captions):
        images = np.stack([np.asarray(open_image(block.folder / file)) for file in block.files(i)])
        shown.append(Shown(caption, torch.from_numpy(images).movedim(-1, 1) / 255))
    return shown


def main(out: Path, jobs: int) -> None:
    """Make everything and write it to a folder."""
    asked = blocks(out)
    one_core: dict[str, Any] = {"initializer": torch.set_num_threads, "initargs": (1,)}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), **one_core) as pool:
        waiting = [pool.submit(make, block) for block in asked]
        for number, future in enumerate(as_completed(waiting), start=1):
            future.result()
            if number % 10 == 0:
                print(f"{number} of {len(asked)} blocks of images", flush=True)
    utility = write_labels(out, asked)
    print(f"{len(utility)} prompts with {IMAGES} images; utilities spread {utility.std():.2f}")


def write_labels(out: Path, asked: Sequence[Block]) -> np.ndarray:
    """OUT/train.json, what annotators think of the images; returns the utilities behind it, (prompts, images)."""
    judge = load_judge()
    utility = np.concatenate([utilities(judge, read(block), WEIGHTS["mini"]) for block in asked])
    ranked = opinions(utility, noise_for(utility), ANNOTATORS, np.random.default_rng(SEED))
    named = [(caption, block.files(i)) for block in asked for i, caption in enumerate(block.captions)]
    entries = [
        entry
        for (caption, files), some in zip(named, ranked, strict=True)
        for entry in learning_entries(caption, [f"images/{file}" for file in files], some)
    ]
    write(out / "train.json", json.dumps(entries, indent=1).encode())
    return utility


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/mini/previews"))
    parser.add_argument("--jobs", type=int, default=2, help="processes, a core each")
    args = parser.parse_args()
    main(args.out, args.jobs)
