"""python -m sp_rerank.train.mini.measure [--prompts 16] [--sheet docs/mini-samples.png] [--picks docs/picks.png]

What the embedded models are worth, in figures and two pictures: how near the images come to what they should show
(`truth`), and what the pick of each embedded scorer gains over a candidate by chance. Five minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sp_rerank import load_pipeline, load_scorer
from sp_rerank.diffusion.loading import find_dtype
from sp_rerank.storage.images import to_images
from sp_rerank.train.mini.grammar import draw_description
from sp_rerank.train.mini.images import make_images
from sp_rerank.train.mini.truth import terms_of

SEED = 4_000_000  # of the samples; no stage trained on these
CANDIDATES = 25
SCORERS = ("clip-mini", "stable-preference-mini")
SHEET = (
    "a lemon wearing sunglasses on the beach",
    "a penguin in the snow",
    "a teddy bear and a skateboard on the grass",
    "a rocket under the night sky",
    "a cat wearing a crown on a pink background",
    "two strawberries on a white background",
    "a pineapple left of a watermelon on the beach",
    "a panda wearing a top hat at sunset",
)
SAMPLES = 12  # of each prompt on the sheet
PICKED = (0, 1, 7)  # rows of SHEET whose picks of a hundred are shown
CELL, TEXT = 96, 24  # pixels


def picks(pipe: Any, prompts: int) -> dict[str, float]:
    """The mean truth of all candidates, of the best ones, and of what each scorer picks; half of the prompts unseen."""
    scorers, rng = {name: load_scorer(name) for name in SCORERS}, random.Random(SEED + 1)
    rows: list[dict[str, float]] = []
    for prompt in range(prompts):
        caption = draw_description(rng, held_out=prompt % 2 == 1).caption
        images = make_images(pipe, [caption] * CANDIDATES, SEED + 10_000 * prompt)
        worth = terms_of(caption, images).utility()
        row = {"mean": worth.mean(), "best": worth.max()}
        for name, scorer in scorers.items():
            row[name] = worth[int(scorer.score(caption, images).argmax())]
        rows.append({key: float(value) for key, value in row.items()})
    means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    way = means["best"] - means["mean"]
    return means | {f"gain of {name}": (means[name] - means["mean"]) / way for name in scorers}


def sample_sheet(pipe: Any) -> Image.Image:
    """Eight prompts with twelve samples each, the seeds 0 to 11, none chosen."""
    sheet = Image.new("RGB", (SAMPLES * (CELL + 4) + 4, len(SHEET) * (CELL + TEXT + 4) + 4), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for row, caption in enumerate(SHEET):
        y = row * (CELL + TEXT + 4) + 4
        draw.text((6, y + 2), caption, (40, 40, 44), font)
        for column, image in enumerate(to_images(make_images(pipe, [caption] * SAMPLES, 0))):
            scaled = image.resize((CELL, CELL), Image.Resampling.BICUBIC)
            sheet.paste(scaled, (column * (CELL + 4) + 4, y + TEXT))
    return sheet


def picks_sheet(pipe: Any) -> Image.Image:
    """Of three prompts the first of a hundred candidates, the pick of each scorer, and the best by the truth."""
    columns = ("by chance", *SCORERS, "by the truth")
    side, left, top = 2 * CELL, 8, 26
    sheet = Image.new("RGB", (len(columns) * (side + left) + left, len(PICKED) * (side + top) + top), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    scorers = [load_scorer(name) for name in SCORERS]
    for row, caption in enumerate(SHEET[i] for i in PICKED):
        images, y = make_images(pipe, [caption] * 100, 0), row * (side + top) + top
        picked = [0, *(int(scorer.score(caption, images).argmax()) for scorer in scorers)]
        picked.append(int(terms_of(caption, images).utility().argmax()))
        draw.text((left, y + side + 4), caption, (40, 40, 44), font)
        for column, image in enumerate(to_images(images[picked])):
            sheet.paste(image.resize((side, side), Image.Resampling.BICUBIC), (column * (side + left) + left, y))
    for column, name in enumerate(columns):
        draw.text((column * (side + left) + left, 4), name, (40, 40, 44), font)
    return sheet


def main(prompts: int, sheet: Path, chosen: Path) -> None:
    """Print the figures as JSON and write the pictures."""
    pipe = load_pipeline("mini", dtype=find_dtype("auto", "mini", "cpu"))
    print(json.dumps({key: round(value, 4) for key, value in picks(pipe, prompts).items()}, indent=2))
    sheet.parent.mkdir(parents=True, exist_ok=True)
    sample_sheet(pipe).save(sheet)
    picks_sheet(pipe).save(chosen)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--sheet", type=Path, default=Path("docs/mini-samples.png"))
    parser.add_argument("--picks", type=Path, default=Path("docs/picks.png"))
    args = parser.parse_args()
    main(args.prompts, args.sheet, args.picks)
