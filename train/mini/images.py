"""python -m sp_rerank.train.mini.images [--out build/mini/images] [--prompts 3000] [--jobs 2]

Images of the embedded model for simulated people to rank, made once and kept. A domain is a folder of PNG files named
PROMPT-IMAGE.png beside captions.json:

    validation, test   unseen prompts at the setting that `sp-rerank generate` uses, 8 images each
    other              a second domain: combinations that nothing was trained on, another scheduler, stronger guidance
    picks              unseen prompts with 100 images each, for best-of-N
    train              1,000 prompts to learn from, 8 images each
    drafts             more prompts to learn from, in an order that does not depend on how many are asked for, 8 images
                       each of 6 steps like the drafts of a search: two and a half times as many in the same time

Prompts that say left or right are left out: mirroring an image should be a change that does not matter. Blocks of
images that are there already are not made again. Ten images a second on two cores. Knows nothing of what an image is
worth.
"""

from __future__ import annotations

import argparse
import inspect
import json
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from sp_rerank import load_pipeline
from sp_rerank.diffusion.loading import MODELS, find_dtype
from sp_rerank.diffusion.spacing import draft_scheduler, first_time, time_steps
from sp_rerank.storage.atomic import write
from sp_rerank.storage.images import open_image, to_images
from sp_rerank.train.mini.grammar import draw_description

SEED = 5_000_000  # of the images; no stage of the mini world uses these
BLOCK = 5  # prompts that are made at once
IMAGES = 8  # a prompt
EXPONENT = 0.8  # of the time steps of drafts, as in the search `fast`


@dataclass(frozen=True, slots=True)
class Domain:
    """Which images to make.

    Attributes:
        number: Decides captions and seeds.
        prompts: Number of prompts.
        images: Number of images a prompt.
        held_out: Whether the prompts are combinations that nothing was trained on.
        steps: Number of scheduler steps.
        guidance_scale: Guidance.
        scheduler: What makes them: "own" is the pipeline's, "draft" that of a search's drafts, with their time steps.
    """

    number: int
    prompts: int
    images: int = IMAGES
    held_out: bool = False
    steps: int = MODELS["mini"].steps
    guidance_scale: float = MODELS["mini"].guidance_scale
    scheduler: Literal["own", "ddim", "draft"] = "own"


DOMAINS = {
    "validation": Domain(1, 120),
    "test": Domain(2, 240),
    "other": Domain(3, 240, held_out=True, steps=24, guidance_scale=5.0, scheduler="ddim"),
    "picks": Domain(4, 64, images=100),
    "train": Domain(5, 1000),
    "drafts": Domain(6, 3000, steps=6, scheduler="draft"),
}
"""In the order in which their captions are drawn: `drafts` is the last one, so that it can grow."""


@dataclass(frozen=True, slots=True)
class Block:
    """Some prompts whose images are made together: `first` is the number of the first one in its domain."""

    domain: Domain
    first: int
    captions: tuple[str, ...]
    folder: Path

    def files(self, place: int) -> list[str]:
        """The names of the images of a prompt, counted from 0 in the block."""
        return [f"{self.first + place:04}-{j:02}.png" for j in range(self.domain.images)]


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


def captions_of_domains(prompts: int) -> dict[str, list[str]]:
    """The captions of each domain, `prompts` of them of drafts; no caption is in two domains."""
    known: set[str] = set()
    captions = {}
    for name, domain in DOMAINS.items():
        n = prompts if name == "drafts" else domain.prompts
        rng = random.Random(SEED + domain.number)
        captions[name] = draw_captions(rng, n, held_out=domain.held_out, known=known)
    return captions


def blocks_of(out: Path, name: str, captions: Sequence[str]) -> list[Block]:
    """The blocks of a domain."""
    domain = DOMAINS[name]
    each = max(1, BLOCK * IMAGES // domain.images)
    starts = range(0, len(captions), each)
    return [Block(domain, first, tuple(captions[first : first + each]), out / name) for first in starts]


def make_images(
    pipe: Any, captions: Sequence[str], seed: int, *, steps: int | None = None, guidance_scale: float | None = None
) -> Tensor:
    """One image a caption, (n, 3, 64, 64) in [0, 1]; the seeds count up from `seed`.

    Steps and guidance are the mini model's own unless they are given.
    """
    model = MODELS["mini"]
    how = {
        "num_inference_steps": steps or model.steps,
        "guidance_scale": model.guidance_scale if guidance_scale is None else guidance_scale,
    }
    return torch.cat(list(_batches(pipe, captions, seed, how)))


def _batches(pipe: Any, captions: Sequence[str], seed: int, how: dict[str, Any]) -> Iterator[Tensor]:
    model = MODELS["mini"]
    for first in range(0, len(captions), model.cpu_batch):
        batch = list(captions[first : first + model.cpu_batch])
        noise = [torch.Generator("cpu").manual_seed(seed + first + i) for i in range(len(batch))]
        yield pipe(batch, generator=noise, output_type="pt", **how).images.float()


@cache
def _pipeline(domain: Domain) -> tuple[Any, dict[str, Any]]:
    """The pipeline of a domain and what it is called with."""
    pipe = load_pipeline("mini", dtype=find_dtype("auto", "mini", "cpu"))
    how = {"num_inference_steps": domain.steps, "guidance_scale": domain.guidance_scale}
    own = pipe.scheduler
    if domain.scheduler == "draft":
        pipe.scheduler = draft_scheduler(own, given=True)
        takes, first = inspect.signature(pipe.__call__).parameters, first_time(own, {}, MODELS["mini"].steps)
        how |= time_steps(pipe.scheduler, takes, first=first, steps=domain.steps, exponent=EXPONENT)
    elif domain.scheduler == "ddim":
        pipe.scheduler = DDIMScheduler.from_config(own.config)
    return pipe, how


def make(block: Block) -> None:
    """The files of a block, unless they are there; the last one to be written is the last image."""
    files = [file for place in range(len(block.captions)) for file in block.files(place)]
    if (block.folder / files[-1]).exists():
        return
    block.folder.mkdir(parents=True, exist_ok=True)
    domain = block.domain
    pipe, how = _pipeline(domain)
    repeated = [caption for caption in block.captions for _ in range(domain.images)]
    seed = SEED + 1_000_000 * domain.number + domain.images * block.first
    at = 0
    for images in _batches(pipe, repeated, seed, how):
        for file, image in zip(files[at : at + len(images)], to_images(images), strict=True):
            temporary = block.folder / f"{file}.part"
            image.save(temporary, format="PNG")
            temporary.replace(block.folder / file)
        at += len(images)


def read_captions(folder: Path) -> list[str]:
    """The captions of a domain's folder, in the order of its images."""
    return json.loads((folder / "captions.json").read_text(encoding="utf-8"))


def read_images(folder: Path, prompt: int) -> np.ndarray:
    """The images of a prompt as their files hold them, (n, 64, 64, 3) uint8."""
    files = sorted(folder.glob(f"{prompt:04}-[0-9][0-9].png"))
    return np.stack([np.asarray(open_image(file)) for file in files])


def main(out: Path, prompts: int, jobs: int, domains: Sequence[str]) -> None:
    """Make the domains and write them to a folder."""
    captions = captions_of_domains(prompts)
    one_core: dict[str, Any] = {"initializer": torch.set_num_threads, "initargs": (1,)}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), **one_core) as pool:
        for name in domains:
            blocks = blocks_of(out, name, captions[name])
            waiting = [pool.submit(make, block) for block in blocks]
            for number, future in enumerate(as_completed(waiting), start=1):
                future.result()
                if number % 20 == 0:
                    print(f"{name}: {number} of {len(blocks)} blocks of images", flush=True)
            write(out / name / "captions.json", json.dumps(captions[name]).encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/mini/images"))
    parser.add_argument("--prompts", type=int, default=3000, help="of the domain drafts")
    parser.add_argument("--jobs", type=int, default=2, help="processes, a core each")
    parser.add_argument("--domains", nargs="+", choices=list(DOMAINS), default=list(DOMAINS))
    args = parser.parse_args()
    main(args.out, args.prompts, args.jobs, args.domains)
