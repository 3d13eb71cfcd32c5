"""python -m sp_rerank.train.mini.measure [--per-prompt 4] [--sheet docs/mini-samples.png]

What the mini world is worth, in figures and one picture: how well the judge reads real scenes, how often the embedded
model draws what it is asked for, and what the scorer's pick gains in the judge's eyes. Three minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sp_rerank import load_pipeline, load_scorer
from sp_rerank.diffusion.loading import find_dtype
from sp_rerank.storage.images import to_images
from sp_rerank.train.mini.grammar import BACKGROUNDS, OBJECTS, Description, draw_description
from sp_rerank.train.mini.judge import Judge, exact_objects, load_judge, make_images, truth_of
from sp_rerank.train.mini.scenes import draw_scenes
from sp_rerank.train.mini.training import pixels

SEED = 4_000_000  # of the samples; no stage trained on these
PAIRS = 64
PICK_PROMPTS, PICK_FROM = 16, 25
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
CELL, TEXT = 96, 24  # pixels


def judge_accuracy(judge: Judge) -> dict[str, float]:
    """How well the judge reads 2,000 unseen real scenes of trained and of held-out combinations."""
    figures = {}
    for name, held_out in (("trained", False), ("held_out", True)):
        scenes = draw_scenes(2000, SEED, held_out=held_out)
        reading = judge.read(pixels(scenes) / 2 + 0.5)
        counts, worn, background, _ = truth_of(scenes)
        there = counts > 0
        figures |= {
            f"judge_object_labels_{name}": (reading.counts.argmax(-1) > 0)[there].float().mean().item(),
            f"judge_all_objects_and_counts_{name}": exact_objects(judge, scenes),
            f"judge_accessory_{name}": (reading.worn.argmax(-1) == worn).float().mean().item(),
            f"judge_background_{name}": (reading.background.argmax(-1) == background).float().mean().item(),
        }
    return figures


def found_objects(pipe: Any, judge: Judge, descriptions: Sequence[Description], seed: int) -> Tensor:
    """(n,) whether the judge sees every object that a description names in the image made for it."""
    reading = judge.read(make_images(pipe, [d.caption for d in descriptions], seed))
    found = []
    for i, description in enumerate(descriptions):
        names = [name for name in (description.first, description.second) if name]
        found.append(all(bool(reading.has(name)[i]) for name in names))
    return torch.tensor(found, dtype=torch.float32)


def drawing(pipe: Any, judge: Judge, per_prompt: int) -> dict[str, Any]:
    """How often the judge finds what was asked for: one object on each background, and both of two."""
    rng = random.Random(SEED)
    singles = [Description(o, background=b) for o in OBJECTS for b in rng.sample(list(BACKGROUNDS), per_prompt)]
    found = found_objects(pipe, judge, singles, SEED)
    by_object = found.view(len(OBJECTS), per_prompt).mean(dim=1).tolist()
    worst = sorted(zip(by_object, OBJECTS, strict=True))[:5]
    pairs: list[Description] = []
    while len(pairs) < PAIRS:
        drawn = draw_description(rng)
        pairs += [drawn] if drawn.second else []
    return {
        "single_object_found": found.mean().item(),
        "both_of_two_found": found_objects(pipe, judge, pairs, 2 * SEED).mean().item(),
        "samples": [len(singles), len(pairs)],
        "worst_objects": {name: share for share, name in worst},
    }


def picks(pipe: Any, judge: Judge) -> dict[str, float]:
    """The judge's mean score of all candidates, of the one that clip-mini picks, and of the best there was."""
    scorer, rng = load_scorer("clip-mini"), random.Random(SEED + 1)
    rows = []
    for prompt in range(PICK_PROMPTS):
        caption = draw_description(rng, held_out=prompt % 2 == 1).caption
        images = make_images(pipe, [caption] * PICK_FROM, SEED + 10_000 * prompt)
        judged, scored = judge.score(caption, images), scorer.score(caption, images)
        rows.append([judged.mean(), judged[scored.argmax()], judged.max()])
    mean, picked, best = torch.tensor(rows).mean(dim=0).tolist()
    gain = (picked - mean) / (best - mean)
    return {"judge_mean": mean, "judge_of_pick": picked, "judge_best": best, "gain_of_pick": gain}


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


def main(per_prompt: int, sheet: Path) -> None:
    """Print the figures as JSON and write the sheet."""
    judge, pipe = load_judge(), load_pipeline("mini", dtype=find_dtype("auto", "mini", "cpu"))
    figures = {**judge_accuracy(judge), **drawing(pipe, judge, per_prompt), **picks(pipe, judge)}
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}, indent=2))
    sheet.parent.mkdir(parents=True, exist_ok=True)
    sample_sheet(pipe).save(sheet)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-prompt", type=int, default=4)
    parser.add_argument("--sheet", type=Path, default=Path("docs/mini-samples.png"))
    args = parser.parse_args()
    main(args.per_prompt, args.sheet)
