"""One person's taste: a few weights on what a base scorer sees, fitted to that person's answers.

The folder holds the weights alone and names its base, which is loaded beside it and has to be the very one, to the
hash, that they were fitted on. Knows how to score; how the weights are found is in `sp_rerank.train.taste`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin
from PIL import Image
from torch import Tensor, nn

from sp_rerank.errors import UsageError
from sp_rerank.scorers.base import ScorerModel, distinct_prompts, embed, passes
from sp_rerank.scorers.clip import DualEncoder
from sp_rerank.scorers.registry import load_scorer
from sp_rerank.scorers.scoring import embedder
from sp_rerank.types import Scorer


@dataclass(frozen=True, slots=True)
class Seen:
    """What a base scorer sees of n images.

    Attributes:
        score: (n,) its own score.
        image: (n, d) its embeddings of the images, of norm 1.
        match: (n, d) these times the embeddings of the prompts, element by element, whose sum is the cosine; (n, 0)
            where the base does not read prompts.
    """

    score: Tensor
    image: Tensor
    match: Tensor

    def __len__(self) -> int:
        return len(self.score)


@torch.no_grad()
def look(base: Scorer, prompt: str | Sequence[str], images: Tensor | Sequence[Image.Image]) -> Seen:
    """What a base sees of images, float32 on the CPU; the image tower runs once where the base has two towers.

    Args:
        base: A scorer with embeddings of images.
        prompt: The prompt of all images, or one an image.
        images: As for `Scorer.score`.

    Raises:
        UsageError: If the base has no embeddings of images, or the number of prompts does not fit.
    """
    if not isinstance(base, DualEncoder):
        image = embedder(base)(images)
        return Seen(base.score(prompt, images), image, image.new_zeros(len(image), 0))
    prompts, place = distinct_prompts(prompt, len(images))
    texts = torch.cat([base.encode_text(prompts[part]) for part in passes(len(prompts))]).cpu()
    image = base.embed(images)
    match = image * texts[place]
    scale = base.clip.logit_scale.float().exp().cpu() if base.config["score_scale"] == "logit" else 1.0
    return Seen(match.sum(dim=-1) * scale, image, match)


class TasteScorer(ScorerModel, ModelMixin):  # diffusers finds a component's base by its name in this module
    """A base's score and embeddings, weighed as one person would; in units of log-odds of that person's choices.

    Args:
        name: Of the taste, without its hash.
        base: What `load_scorer` takes; a folder, sp@FOLDER, is looked for from the taste's own folder on.
        base_name: Full name of the base, with its hash.
        image_dim: d, numbers in an embedding of an image.
        match_dim: d where the base reads prompts, else 0.
        license: Of the base's weights, which this cannot be used without.
        source: Where the answers come from.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "base":  # no part of this module: its weights stay where they are
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @register_to_config
    def __init__(
        self, name: str, base: str, base_name: str, image_dim: int, match_dim: int, license: str, source: str
    ) -> None:
        super().__init__()
        self.base: Any = None
        self.score_weight = nn.Parameter(torch.zeros(()))
        self.image_weight = nn.Parameter(torch.zeros(image_dim))
        self.match_weight = nn.Parameter(torch.zeros(match_dim))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Self:
        """As of every scorer, and the base with it.

        Raises:
            UsageError: If the base that is found is not the one that the taste was fitted on.
        """
        taste = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        taste.use(load_scorer(_place_of(taste.config["base"], Path(pretrained_model_name_or_path))))
        return taste

    def use(self, base: Scorer) -> None:
        """Take a base.

        Raises:
            UsageError: If it is another one than the taste was fitted on.
        """
        expected = self.config["base_name"]
        if base.name != expected:
            raise UsageError(
                f"{self.config['name']}: expected its base {expected}, which it was fitted on, got {base.name}; "
                "fit it anew on the one that is there"
            )
        self.base = base

    def to(self, *args: Any, **kwargs: Any) -> Self:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As in torch, for the base too."""
        if hasattr(self.base, "to"):
            self.base.to(*args, **kwargs)
        return super().to(*args, **kwargs)

    def embed(self, images: Tensor | Sequence[Image.Image]) -> Tensor:
        """The base's embeddings of images: (n, d) float32 of norm 1, on the CPU."""
        return embed(self.base.encode_image, images)

    def forward(self, prompt: str | Sequence[str], images: Tensor | Sequence[Image.Image]) -> Tensor:
        """Score as `score` does, but with a gradient to the weights."""
        distinct_prompts(prompt, len(images))  # their number must fit
        if not len(images):
            return torch.empty(0)
        seen = look(self.base, prompt, images)
        weights = [weight.float().cpu() for weight in (self.score_weight, self.image_weight, self.match_weight)]
        return seen.score * weights[0] + seen.image @ weights[1] + seen.match @ weights[2]


def _place_of(base: str, folder: Path) -> str:
    """The base as `load_scorer` finds it from where the process is."""
    name, _, place = base.partition("@")
    beside = folder / place
    return f"{name}@{beside}" if place and beside.is_dir() else base
