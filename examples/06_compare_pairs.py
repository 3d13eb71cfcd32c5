"""python examples/06_compare_pairs.py FOLDER "a lemon on the beach" [MODEL]

A scorer that sees two images at a time and says which one is better, as UnifiedReward does (Wang et al. 2025, arXiv
2503.05236). `rank` asks it about a few pairs, each both ways round, and makes an order of the answers; the scores are
utilities in log-odds. Without MODEL the model is tiny and random and knows nothing.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from vision_language import VisionLanguage, load

from sp_rerank import find_images, open_image, rank

QUESTION = (
    "Here are two images of the caption: {}\nWhich one fits the caption and looks better, the first or the second? "
    "Answer with 1 or 2."
)


class Judge:
    """P("1") against P("2")."""

    name = "judge"

    def __init__(self, model: VisionLanguage) -> None:
        self.model = model

    def compare(self, prompt: str, first: Sequence[Image.Image], second: Sequence[Image.Image]) -> Tensor:
        answers = [
            self.model.probabilities(QUESTION.format(prompt), [one, other], ["1", "2"])
            for one, other in zip(first, second, strict=True)
        ]
        chances = torch.stack(answers)
        return chances[:, 0] / chances.sum(dim=1)


def main(folder: str, prompt: str, name: str | None = None) -> None:
    files = find_images([Path(folder)]).files
    for entry in rank(Judge(load(name)), prompt, [open_image(file) for file in files]):
        file = files[entry.candidate.index].name
        print(f"rank {entry.rank}, tie group {entry.tie_group}, utility {entry.score:+.3f}: {file}")


if __name__ == "__main__":
    main(*sys.argv[1:])
