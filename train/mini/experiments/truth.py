"""python -m sp_rerank.train.mini.experiments.truth [--images build/mini/images] [--prompts 40] [--sheet FILE]

What the truth of the mini world sees and what it does not: images of the embedded model shifted, mirrored and damaged;
a ladder of scenes drawn again from more and more noise; scenes of one caption in other styles and sizes. Prints a table
and the speed of this machine, and draws a sheet of the best eight and the worst eight of sixty candidates of eight
prompts. Needs the validation images of `sp_rerank.train.mini.images`. Five minutes on two cores.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from sp_rerank.report.tables import table
from sp_rerank.storage.images import to_images
from sp_rerank.train.mini.grammar import draw_description
from sp_rerank.train.mini.images import read_captions, read_images
from sp_rerank.train.mini.scenes import draw_scene
from sp_rerank.train.mini.training import pixels
from sp_rerank.train.mini.truth import terms_of

LADDER = (0.35, 0.65, 1.0)  # levels of noise from which a scene is drawn again
SHEET_PROMPTS, BEST, OF = 8, 8, 60
CELL, TEXT = 64, 18  # pixels


def _blurred(images: Tensor, side: int) -> Tensor:
    return F.interpolate(F.avg_pool2d(images, side, ceil_mode=True), size=images.shape[-2:], mode="bilinear")


def _noisy(images: Tensor, deviation: float) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + deviation * noise).clamp(0, 1)


def _faded(images: Tensor, share: float) -> Tensor:
    return images + share * (images.mean(dim=(1, 2, 3), keepdim=True) - images)


def _patched(images: Tensor, side: int) -> Tensor:
    patched = images.clone()
    patched[:, :, 24 : 24 + side, 24 : 24 + side] = 0.5
    return patched


def shifted(images: Tensor) -> Tensor:
    """Two pixels to the right and one down; the edge is repeated."""
    return F.pad(images, (2, 0, 1, 0), mode="replicate")[:, :, : images.shape[2], : images.shape[3]]


DAMAGES: Mapping[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "blur": (lambda x: _blurred(x, 2), lambda x: _blurred(x, 4)),
    "noise": (lambda x: _noisy(x, 0.06), lambda x: _noisy(x, 0.12)),
    "fading": (lambda x: _faded(x, 0.25), lambda x: _faded(x, 0.5)),
    "gray patch": (lambda x: _patched(x, 10), lambda x: _patched(x, 18)),
}
"""By name, a weak and a strong damage of images (n, 3, 64, 64) in [0, 1]."""


def turned(first: np.ndarray, second: np.ndarray) -> float:
    """The share of pairs of a group that the second values order otherwise; (groups, images) each."""
    i, j = np.triu_indices(first.shape[1], 1)
    return float(((first[:, i] > first[:, j]) != (second[:, i] > second[:, j])).mean())


def utilities(groups: Sequence[tuple[str, Tensor]], change: Callable[[Tensor], Tensor] = lambda x: x) -> np.ndarray:
    """(groups, images) U of captions and their images, changed."""
    return np.stack([terms_of(caption, change(images)).utility() for caption, images in groups])


def ladder(n: int, seed: int = 0) -> np.ndarray:
    """(n, 4) U of scenes through the autoencoder and drawn again from the levels of LADDER."""
    from sp_rerank.train.mini.corruption import redraw

    rng = random.Random(seed)
    scenes = [draw_scene(draw_description(rng), rng) for _ in range(n)]
    versions = [redraw(scenes, level, seed=seed) for level in (0.0, *LADDER)]
    return np.array([
        [terms_of(scene.description.caption, version[i : i + 1]).utility()[0] for version in versions]
        for i, scene in enumerate(scenes)
    ])


def spread_of_styles(n: int, seed: int = 0) -> float:
    """The mean deviation of U among eight scenes of one caption, in other styles, sizes and places."""
    rng = random.Random(seed)
    deviations = []
    for _ in range(n):
        description = draw_description(rng)
        images = pixels([draw_scene(description, rng) for _ in range(8)]) / 2 + 0.5
        deviations.append(terms_of(description.caption, images).utility().std())
    return float(np.mean(deviations))


def _within(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(axis=1, keepdims=True)).ravel()


def figures(groups: Sequence[tuple[str, Tensor]], scenes: int) -> list[tuple[str, str]]:
    """Rows of what was looked at and what came out."""
    began = time.perf_counter()
    plain = utilities(groups)
    rate = plain.size / (time.perf_counter() - began)
    spread = plain.std(axis=1).mean()
    rows = [("deviation of U among the candidates of a prompt", f"{spread:.3f}")]
    steps = ladder(scenes)
    for k, level in enumerate(LADDER, start=1):
        before = "through the autoencoder" if k == 1 else f"drawn again from {LADDER[k - 2]}"
        rows.append((f"{before} above drawn again from {level}", f"{(steps[:, k - 1] > steps[:, k]).mean():.1%}"))
    for name, change in (("a shift of (2, 1) px", shifted), ("mirroring", lambda x: x.flip(3))):
        rows.append((f"pairs turned by {name}", f"{turned(plain, utilities(groups, change)):.1%}"))
    for name, (weak, strong) in DAMAGES.items():
        low, lower = utilities(groups, weak), utilities(groups, strong)
        rows.append((f"{name} lowers U; strong below weak", f"{(low < plain).mean():.1%}; {(lower < low).mean():.1%}"))
    for name, looks in (("brightness", torch.mean), ("contrast", torch.std)):
        values = np.stack([looks(images, dim=(1, 2, 3)).numpy() for _, images in groups])
        correlation = np.corrcoef(_within(values), _within(plain))[0, 1]
        rows.append((f"correlation with {name} within a prompt", f"{correlation:.2f}"))
    rows.append(("deviation by style, size and place of real scenes", f"{spread_of_styles(scenes):.3f}"))
    rows.append(("images a second", f"{rate:.0f}, {torch.get_num_threads()} threads"))
    return rows


def sheet(folder: Path) -> Image.Image:
    """The best eight, left, and the worst eight, right, of the first sixty candidates of eight prompts."""
    width, height = (2 * BEST) * (CELL + 2) + 26, SHEET_PROMPTS * (CELL + TEXT + 4) + 4
    whole = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(12)
    captions = read_captions(folder)
    for row in range(SHEET_PROMPTS):
        y = row * (CELL + TEXT + 4) + 4
        images = torch.from_numpy(read_images(folder, row)[:OF]).movedim(-1, 1) / 255
        order = terms_of(captions[row], images).utility().argsort()[::-1].copy()
        chosen = images[torch.from_numpy(np.concatenate([order[:BEST], order[-BEST:]]))]
        draw.text((6, y), captions[row], (40, 40, 44), font)
        for column, image in enumerate(to_images(chosen)):
            whole.paste(image, (column * (CELL + 2) + (4 if column < BEST else 22), y + TEXT))
    return whole


def main(images: Path, prompts: int, path: Path | None) -> None:
    """Print the table; draw the sheet where a file is named."""
    captions = read_captions(images / "validation")[:prompts]
    groups: list[tuple[str, Any]] = [
        (caption, torch.from_numpy(read_images(images / "validation", i)).movedim(-1, 1) / 255)
        for i, caption in enumerate(captions)
    ]
    print(table(["check", "result"], figures(groups, 2 * prompts)))
    if path:
        sheet(images / "picks").save(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=Path("build/mini/images"))
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    main(args.images, args.prompts, args.sheet)
