"""The vocabulary of the project: what a candidate, a ranked candidate and a scorer are.

Imports nothing heavy: torch is named for the type checker only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Candidate:
    """One image made for a prompt.

    Attributes:
        index: 0..n-1, its place in the run and its file name.
        seed: Seed of its initial noise; None for an image that was not made here.
        image: RGB.
        flagged: Whether the safety checker replaced it.
    """

    index: int
    seed: int | None
    image: Image.Image
    flagged: bool = False


@dataclass(frozen=True, slots=True)
class Ranked:
    """A candidate with its place in the order.

    Attributes:
        candidate: What was ranked.
        score: In the scorer's own scale; higher is better; comparable within one prompt only.
        rank: 1 = best.
        tie_group: Candidates of one group are not reliably told apart.
        prompt: What the image should show.
    """

    candidate: Candidate
    score: float
    rank: int
    tie_group: int
    prompt: str = ""

    @property
    def image(self) -> Image.Image:
        """The candidate's image, RGB."""
        return self.candidate.image

    @property
    def seed(self) -> int | None:
        """The seed of the candidate's noise; None for an image that was not made here."""
        return self.candidate.seed

    def _repr_png_(self) -> bytes | None:
        """The image in a notebook, no larger than 384 pixels."""
        small = self.image.copy()
        small.thumbnail((384, 384))
        return small._repr_png_()


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes:
        stage: Label of the stage that a search is at, such as "draft, 8 steps"; None while candidates are finished.
        done: Number of candidates that this stage has scored.
        made: Number of those that were made by this call.
        total: Number of candidates that this stage will have scored.
        best: Best usable score of a finished candidate so far, NaN before there is one.
        in_hand: What the denoiser has done of the batch in hand, in candidates: 2.5 of a batch of 5 after half of the
            steps; 0 after a batch.
    """

    stage: str | None
    done: int
    made: int
    total: int
    best: float
    in_hand: float = 0.0


class TextToImagePipeline(Protocol):
    """What this project needs of a diffusers text-to-image pipeline.

    Most have more, which is asked for where it is used: `vae`, `encode_prompt`, `tokenizer`, `unet` or `transformer`.
    """

    scheduler: Any
    """A scheduler of diffusers."""

    @property
    def config(self) -> Any:
        """Arguments of the pipeline's constructor, by name."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        ...

    def __call__(self, *args: object, **arguments: object) -> Any:
        """Make images; the output has `images`."""
        ...


@runtime_checkable
class Scorer(Protocol):
    """Anything that scores images for a prompt: a name and one method, no state, no gradient."""

    @property
    def name(self) -> str:
        """Goes into the manifest; with a hash of the weights where there are any: "clip-mini@3f2a..."."""
        ...

    def score(self, prompt: str | Sequence[str], images: Tensor | Sequence[Image.Image]) -> Tensor:
        """Score n images; higher is better.

        Args:
            prompt: the prompt of all images, or one prompt an image.
            images: (n, 3, H, W) float in [0, 1] on any device, or n PIL images.

        Returns:
            (n,) float32 on the CPU.
        """
        ...


@runtime_checkable
class SigmaScorer(Scorer, Protocol):
    """A scorer that also says how sure it is of each score, as HPSv3 does; what it does not tell apart ties."""

    def score_with_sigma(
        self, prompt: str | Sequence[str], images: Tensor | Sequence[Image.Image]
    ) -> tuple[Tensor, Tensor]:
        """Score n images as `score` does.

        Returns:
            scores and their standard deviations, in the same scale: (n,) float32 on the CPU each.
        """
        ...


@runtime_checkable
class PairScorer(Protocol):
    """Anything that tells which of two images of a prompt is better, and gives none of them a score of its own."""

    @property
    def name(self) -> str:
        """As of a `Scorer`."""
        ...

    def compare(self, prompt: str, first: Sequence[Image.Image], second: Sequence[Image.Image]) -> Tensor:
        """Compare n pairs.

        Args:
            prompt: what all images should show.
            first: n RGB images of any sizes.
            second: n RGB images of any sizes, each of them beside the first one in its place.

        Returns:
            (n,) floats in 0..1: the probability that the first one is better; .5 for a tie.
        """
        ...
