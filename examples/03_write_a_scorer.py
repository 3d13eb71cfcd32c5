"""python examples/03_write_a_scorer.py OUT.png

A scorer of your own is a name and one method. This one measures color, and adds it to what CLIP says. `check_scorer`
tells whether it keeps the rules that a ranking relies on. Runs offline on the embedded model.

To make it known to the command line, name a function that builds it in your package's pyproject.toml:

    [project.entry-points."sp_rerank.scorers"]
    colorful = "my_package:build"          # def build(device, dtype): return Colorful()
"""

import sys
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sp_rerank import Scorer, check_scorer, generate, load_pipeline, load_scorer


class Colorful:
    """CLIP's cosine plus a little of the mean saturation, max - min of red, green and blue."""

    name = "colorful"

    def __init__(self, weight: float = 0.2) -> None:
        self.clip: Scorer = load_scorer("clip-mini")
        self.weight = weight

    @torch.no_grad()
    def score(self, prompt: str | Sequence[str], images: Tensor | Sequence[Image.Image]) -> Tensor:
        return self.clip.score(prompt, images) + self.weight * saturation(images)


def saturation(images: Tensor | Sequence[Image.Image]) -> Tensor:
    """(n,) in [0, 1], of (n, 3, H, W) in [0, 1] or of PIL images."""
    if isinstance(images, Tensor):
        return (images.amax(dim=1) - images.amin(dim=1)).flatten(1).mean(dim=1).float().cpu()
    arrays = (np.asarray(image.convert("RGB"), dtype=np.float32) / 255 for image in images)
    return torch.tensor([float((a.max(axis=2) - a.min(axis=2)).mean()) for a in arrays])


def main(out: str) -> None:
    scorer = Colorful()
    check_scorer(scorer)
    (best,) = generate("a mushroom", pipe=load_pipeline("mini"), scorer=scorer, n=20, top_k=1)
    best.candidate.image.resize((256, 256)).save(out)
    print(f"seed {best.candidate.seed} scored {best.score:.4f}: {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
