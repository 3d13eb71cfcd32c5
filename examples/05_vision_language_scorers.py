"""python examples/05_vision_language_scorers.py FOLDER "a lemon on the beach" [MODEL]

Scorers on a vision-language model: VQAScore (Lin et al. 2024, arXiv 2404.01291), the probability of "Yes", and one that
gives a mean and its sigma, as HPSv3 does (Ma et al. 2025, arXiv 2508.03789): images within the sigma of each other tie.
Without MODEL, a name such as Qwen/Qwen2-VL-2B-Instruct or a folder, the model is tiny and random and knows nothing.

A package makes them known to the command line:

    [project.entry-points."sp_rerank.scorers"]
    vqascore = "my_package:build"          # def build(device, dtype): return VqaScore(load("Qwen/...", device))
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image
from vision_language import VisionLanguage, load

from sp_rerank import check_scorer, find_images, open_image, rank


def pairs_of(prompt: str | Sequence[str], images: Tensor | Sequence[Image.Image]) -> list[tuple[str, Image.Image]]:
    """A prompt and a PIL image each, of what a scorer is given."""
    pictures = [to_pil_image(image.float().cpu()) for image in images] if isinstance(images, Tensor) else images
    prompts = [prompt] * len(pictures) if isinstance(prompt, str) else prompt
    return list(zip(prompts, pictures, strict=True))


class VqaScore:
    """P("Yes") to the question whether the image shows the prompt."""

    name = "vqascore"

    def __init__(self, model: VisionLanguage) -> None:
        self.model = model

    def score(self, prompt: str | Sequence[str], images: Tensor | Sequence[Image.Image]) -> Tensor:
        question = 'Does this figure show "{}"? Please answer yes or no.'
        chances = [
            self.model.probabilities(question.format(text), [picture], ["Yes"])
            for text, picture in pairs_of(prompt, images)
        ]
        return torch.cat(chances)


class MeanAndSigma:
    """A head on the last token: a score, and the logarithm of its standard deviation.

    The head is random here, as the model is. HPSv3's is its `rm_head`, of the same layers, on a token of its own.
    """

    name = "mean-and-sigma"

    def __init__(self, model: VisionLanguage) -> None:
        self.model = model
        torch.manual_seed(0)
        width = model.model.config.get_text_config().hidden_size
        self.head = nn.Sequential(nn.Linear(width, 1024), nn.ReLU(), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2))

    def score(self, prompt: str | Sequence[str], images: Tensor | Sequence[Image.Image]) -> Tensor:
        return self.score_with_sigma(prompt, images)[0]

    @torch.no_grad()
    def score_with_sigma(
        self, prompt: str | Sequence[str], images: Tensor | Sequence[Image.Image]
    ) -> tuple[Tensor, Tensor]:
        question = "How good is this image of: {}"
        last = [
            self.model.ask(question.format(text), [picture]).hidden_states[-1][0, -1].float().cpu()
            for text, picture in pairs_of(prompt, images)
        ]
        mean, log_sigma = self.head(torch.stack(last)).unbind(dim=1)
        return mean, log_sigma.exp()


def main(folder: str, prompt: str, name: str | None = None) -> None:
    pictures = [open_image(file) for file in find_images([Path(folder)]).files]
    model = load(name)
    for scorer in (VqaScore(model), MeanAndSigma(model)):
        check_scorer(scorer)
        for entry in rank(scorer, prompt, pictures):
            print(f"{scorer.name}: rank {entry.rank}, tie group {entry.tie_group}, {entry.score:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
