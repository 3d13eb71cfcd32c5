"""python -m sp_rerank.train.mini.clip [--steps 2500] [--work build/mini]

Stage 3 of 3: the small CLIP, which becomes the scorer `clip-mini`. Needs the pipeline of stages 1 and 2.

Trained contrastively on scenes and their captions, four of a batch naming the same first object, and on the same scenes
made wrong (`corruption`), which a caption has to tell from the right ones. Beside it, three heads that are thrown away
afterwards keep shape in the tower: where the center of each object lies, in which style it is drawn, and where and how
much a picture differs from the scene that it was made from. Nothing here knows what a picture is worth (`truth`).
An hour of one core; expected at the end: the right caption of 64 for nineteen in twenty unseen scenes.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sp_rerank.scorers.clip import DualEncoder
from sp_rerank.scorers.preprocess import Preprocess
from sp_rerank.train.mini.corruption import CELLS, corrupt, error_map, redrawn
from sp_rerank.train.mini.grammar import OBJECTS, Description, draw_description
from sp_rerank.train.mini.scenes import SIDE, STYLES, Scene, draw_scene
from sp_rerank.train.mini.training import fit, pixels
from sp_rerank.train.mini.vocabulary import CONTEXT, merges

SEEN = 2 * SIDE  # pixels a side: the tower halves four times, so pictures are doubled before it
SCENES, AGAIN = 40, 24  # drawn scenes, and scenes drawn again by the embedded model, in a batch
SEED = 21
RIVALS = 4  # captions of a batch that name the same first object: what CLIP must tell apart beyond the object
MEAN, STD = 0.5, 0.25  # of pixels before the encoder, all channels alike
WIDTH = 20
ERROR_SCALE = 0.1  # of an error that matters


def build_clip() -> DualEncoder:
    """An untrained CLIP of 3.0 million weights: open_clip's ModifiedResNet on 128x128 pixels, a text tower 128 wide."""
    own = merges()
    return DualEncoder(
        name="clip-mini",
        embed_dim=192,
        vision_cfg={"image_size": SEEN, "layers": [2, 2, 2, 1], "width": WIDTH, "head_width": 64},
        text_cfg={"context_length": CONTEXT, "vocab_size": 512 + len(own) + 2, "width": 128, "heads": 4, "layers": 3},
        quick_gelu=False,
        preprocess=Preprocess(size=SEEN, mean=(MEAN, MEAN, MEAN), std=(STD, STD, STD)).to_dict(),
        score_scale="cosine",
        license="Apache-2.0",
        source="trained on scenes of the mini world, sp_rerank.train.mini.clip",
        merges=own,
    )


class Heads(nn.Module):
    """What the tower's third stage, (n, 16 WIDTH, 8, 8), has to keep, cell by cell: objects, styles and errors."""

    def __init__(self) -> None:
        super().__init__()
        width = 16 * WIDTH
        self.objects = nn.Conv2d(width, len(OBJECTS) + len(STYLES), 1)
        self.errors = nn.Sequential(
            nn.Conv2d(width, 128, 3, padding=1), nn.SiLU(), nn.Conv2d(128, (CELLS // 8) ** 2, 1),
            nn.PixelShuffle(CELLS // 8),
        )  # fmt: skip
        assert self.objects.bias is not None
        nn.init.constant_(self.objects.bias, -5.0)  # of 2,048 places one to three are taken

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (n, 32, 8, 8) of objects and (n, 4, 8, 8) of styles, and errors (n, 16, 16) in ERROR_SCALE."""
        objects, styles = self.objects(features).split([len(OBJECTS), len(STYLES)], dim=1)
        return objects.float(), styles.float(), self.errors(features)[:, 0].float()


def look(visual: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """The embeddings (n, d) of norm 1 and the third stage's map of images (n, 3, 64, 64) in [0, 1]."""
    doubled = F.interpolate(images, size=SEEN, mode="bicubic", antialias=True).clamp(0, 1)
    pixels = ((doubled - MEAN) / STD).contiguous(memory_format=torch.channels_last)  # half the time on a CPU
    features = visual.layer1(visual.stem(pixels))
    third = visual.layer3(visual.layer2(features))
    return F.normalize(visual.attnpool(visual.layer4(third)).float(), dim=-1), third


def draw_rivals(rng: random.Random, n: int) -> list[Description]:
    """n descriptions in groups of RIVALS that share their first object."""
    descriptions: list[Description] = []
    while len(descriptions) < n:
        drawn = draw_description(rng)
        rival = replace(drawn, first=descriptions[-1].first) if len(descriptions) % RIVALS else drawn
        if rival.first != rival.second and not rival.held_out:
            descriptions.append(rival)
    return descriptions


def contrastive_loss(images: Tensor, texts: Tensor, wrong: Tensor, scale: Tensor, same: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy (Radford et al. 2021, fig. 3), with wrong images that no caption may choose.

    Args:
        images: (n, d) of norm 1.
        texts: (n, d) of norm 1.
        wrong: (m, d) of norm 1: images that a text is to tell from its own.
        scale: the logit scale, not its logarithm.
        same: (n, n), which captions are equal; they count as right answers too.
    """
    logits = scale * images @ texts.T
    target = same.float() / same.sum(dim=1, keepdim=True)
    by_text = torch.cat([logits.T, scale * texts @ wrong.T], dim=1)
    padded = F.pad(target, (0, len(wrong)))
    return (F.cross_entropy(logits, target) + F.cross_entropy(by_text, padded)) / 2


def head_losses(heads: Heads, features: Tensor, scenes: list[Scene], errors: Tensor) -> Tensor:
    """What the heads get wrong: objects and styles by cross-entropy, errors by a smooth absolute difference."""
    objects, styles, guessed = heads(features)
    place, kind = torch.zeros_like(objects), torch.full((len(scenes), 8, 8), -100)
    for row, scene in enumerate(scenes):
        for placed in scene.objects:
            left, top, right, bottom = placed.box
            x, y = (min(max((low + high) * 8 // (2 * SIDE), 0), 7) for low, high in ((left, right), (top, bottom)))
            place[row, OBJECTS.index(placed.name), y, x] = 1
            kind[row, y, x] = STYLES.index(placed.style)
    seen = F.binary_cross_entropy_with_logits(objects, place, reduction="sum") / len(scenes)
    wrong = F.smooth_l1_loss(guessed, errors / ERROR_SCALE, beta=0.3)
    return 0.1 * seen + 0.3 * F.cross_entropy(styles, kind) + 3 * wrong


@torch.inference_mode()
def retrieval(model: DualEncoder, seed: int, batches: int = 8) -> float:
    """How often the right one of 64 captions is the nearest, on scenes never trained on."""
    right = 0
    for batch in range(batches):
        rng = random.Random(f"{seed}-{batch}")
        scenes = [draw_scene(description, rng) for description in draw_rivals(rng, 64)]
        captions = [scene.description.caption for scene in scenes]
        found = (model.encode_image(pixels(scenes) / 2 + 0.5) @ model.encode_text(captions).T).argmax(dim=1)
        right += sum(captions[i] == caption for i, caption in zip(found.tolist(), captions, strict=True))
    return right / (64 * batches)


def main(steps: int, work: Path) -> None:
    """Train, measure, and write the scorer to WORK/clip."""
    torch.manual_seed(SEED)
    model, heads = build_clip(), Heads()
    visual: Any = model.clip.visual
    again, scenes_again = redrawn(work)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(f"{SEED}-{step}")
        descriptions = draw_rivals(rng, SCENES)
        scenes = [draw_scene(description, rng) for description in descriptions]
        others = [draw_scene(rng.choice((d, d, draw_description(rng))), rng) for d in descriptions]
        chosen = [rng.randrange(len(again)) for _ in range(AGAIN)]
        scenes += [scenes_again[i] for i in chosen]
        right = pixels(scenes) / 2 + 0.5
        shown = torch.cat([right[:SCENES], again[chosen]])
        wrong = corrupt(right[:SCENES], pixels(others) / 2 + 0.5)
        errors = torch.cat([error_map(shown, right), error_map(wrong, right[:SCENES])])
        captions = [scene.description.caption for scene in scenes]
        same = torch.tensor([[a == b for b in captions] for a in captions])
        with torch.autocast("cpu", torch.bfloat16):
            embedded, third = look(visual, torch.cat([shown, wrong]))
            texts = F.normalize(model.clip.encode_text(model.tokenize(captions)).float(), dim=-1)
            kept = head_losses(heads, third, [*scenes, *scenes[:SCENES]], errors)
        scale = model.clip.logit_scale.exp().clamp(max=100)
        contrast = contrastive_loss(embedded[: len(scenes)], texts, embedded[len(scenes) :], scale, same)
        return contrast + kept, {"contrast": contrast.item(), "heads": kept.item(), "scale": scale.item()}

    visual.to(memory_format=torch.channels_last)
    module = nn.ModuleDict({"clip": model.clip, "heads": heads})  # not the scorer: that one freezes batch norms
    fit(module, loss_of, steps=steps, peak=2e-3, folder=work / "clip-training", weight_decay=0.05)
    model.half().save_pretrained(work / "clip")
    print(json.dumps({"retrieval_of_64": round(retrieval(model.float(), SEED + 1), 3)}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--work", type=Path, default=Path("build/mini"))
    args = parser.parse_args()
    main(args.steps, args.work)
