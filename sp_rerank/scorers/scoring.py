"""The one place that asks a scorer: as many scores as images, numbers, and a failure that names the scorer.

A scorer may come from any package. Knows the contract of `sp_rerank.types.Scorer`; not what a score is for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sp_rerank.errors import OptionError, SpRerankError, UsageError, is_device_lost, is_out_of_memory
from sp_rerank.storage.images import to_rgb

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from sp_rerank.types import PairScorer, Scorer

MEND = "correct the scorer (sp_rerank.check_scorer names the rule that it breaks) or take another one"


def score_images(
    scorer: Scorer, prompt: str | Sequence[str], images: Tensor | Sequence[Image.Image], *, last_use: bool = False
) -> list[float]:
    """The score of each image.

    The scorer gets copies: what it does to them changes nothing of the caller's. PIL images are read as files are, see
    `sp_rerank.storage.images.to_rgb`.

    Args:
        scorer: Any scorer.
        prompt: The prompt of all images, or one prompt for each.
        images: (n, 3, H, W) float in [0, 1] on any device, or n PIL images.
        last_use: The images are upright RGB, and the caller drops them: large ones need not be in memory twice.

    Returns:
        n numbers; NaN where the score is not finite.

    Raises:
        UsageError: naming the scorer, if it raises an error or gives anything but a tensor of n numbers.
        SpRerankError: of the kind that the scorer raises, with its name.
        Exception: as it is, if memory does not suffice or the accelerator failed; see `sp_rerank.errors`.
    """
    return _asked(scorer, "score", prompt, images, last_use)[0]


def score_with_sigma(
    scorer: Scorer, prompt: str | Sequence[str], images: Tensor | Sequence[Image.Image], *, last_use: bool = False
) -> tuple[list[float], list[float] | None]:
    """`score_images`, and the standard deviation of each score where the scorer tells it, see `SigmaScorer`; else None.

    Raises:
        UsageError: as `score_images` does, and for a standard deviation below 0.
    """
    if not hasattr(scorer, "score_with_sigma"):
        return score_images(scorer, prompt, images, last_use=last_use), None
    columns = _asked(scorer, "score_with_sigma", prompt, images, last_use)
    if len(columns) != 2:
        raise UsageError(f"scorer {name_of(scorer)}: expected scores and sigmas, got {len(columns)} tensors; {MEND}")
    scores, sigmas = columns
    below = [sigma for sigma in sigmas if sigma < 0]
    if below:
        raise UsageError(f"scorer {name_of(scorer)}: expected standard deviations from 0 on, got {below[0]}; {MEND}")
    return scores, sigmas


def refuse_pairs(*scorers: Scorer | PairScorer) -> None:
    """Refuse scorers that compare pairs where each image is scored by itself.

    Raises:
        UsageError: naming the first, and what takes it.
    """
    for scorer in scorers:
        if not hasattr(scorer, "score") and hasattr(scorer, "compare"):
            raise UsageError(
                f"scorer {name_of(scorer)} compares pairs of images and scores none of them alone, which is needed "
                "here; rank images that exist with it (rank, compare), or take another one"
            )


def _asked(
    scorer: Scorer, method: str, prompt: str | Sequence[str], images: Tensor | Sequence[Image.Image], last_use: bool
) -> list[list[float]]:
    """What a method of a scorer gives of each image: a list of numbers for each tensor that it returns."""
    name = name_of(scorer)
    refuse_pairs(scorer)
    if len(images) == 0:
        return [[], []] if method != "score" else [[]]
    copies: Any = images
    if not last_use:
        copies = [_copy(name, image) for image in images] if isinstance(images, Sequence) else images.clone()
    try:
        given = getattr(scorer, method)(prompt, copies)
    except Exception as error:
        # As it is, and without a second reference to it: it holds the memory that is to be freed.
        if is_out_of_memory(error) or is_device_lost(error):
            error.add_note(f"raised by the scorer {name}")
            raise
        raise named_error(error, name) from error
    columns = given if isinstance(given, tuple) and method != "score" else (given,)
    return [_numbers(column, len(images), name) for column in columns]


def name_of(scorer: Scorer | PairScorer) -> str:
    """The scorer's name.

    Raises:
        UsageError: if it has none, or the name cannot be had.
    """
    try:
        name: Any = scorer.name
    except Exception as error:
        raise named_error(error, type(scorer).__name__) from error
    if not isinstance(name, str) or not name:
        raise UsageError(
            f"scorer {type(scorer).__name__}: expected a name, a text that is not empty, got {name!r}; {MEND}"
        )
    return name


def embedder(scorer: Scorer | PairScorer) -> Callable[[Tensor | Sequence[Image.Image]], Tensor]:
    """What embeds images with a scorer's own network, for comparing them with each other.

    Returns:
        A function of n images, as for `Scorer.score`, that gives (n, d) floats on the CPU.

    Raises:
        UsageError: if the scorer has no embeddings of images.
    """
    embed = getattr(scorer, "embed", None)
    if embed is None:
        raise UsageError(
            f"scorer {scorer.name} has no embeddings of images, by which near-copies are told; expected one that "
            "compares an image with a text in one space, such as clip-l, hps-v2.1 or clip-mini"
        )
    return embed


def _copy(name: str, image: Image.Image) -> Image.Image:
    try:
        return to_rgb(image)
    except ValueError as error:
        raise UsageError(f"an image for the scorer {name} cannot be read: {error}") from error


def named_error(error: Exception, name: str) -> SpRerankError:
    """The error to raise in place of one that the scorer of this name raised."""
    if isinstance(error, SpRerankError):
        kind = UsageError if isinstance(error, OptionError) else type(error)
        return kind(f"scorer {name}: {error}")
    why = " ".join(f"{type(error).__name__}: {error}".split())
    return UsageError(f"scorer {name} failed: {why}; {MEND}")


def _numbers(scores: Any, count: int, name: str) -> list[float]:
    shape = getattr(scores, "shape", None)
    if shape is None or not hasattr(scores, "tolist"):
        got = "None" if scores is None else f"a {type(scores).__name__}"
    elif tuple(shape) != (count,):
        got = f"shape {tuple(shape)}"
    else:
        try:
            numbers = [float(score) for score in scores.tolist()]
        except (TypeError, ValueError):
            got = f"values of {scores.dtype}"
        else:
            return [score if math.isfinite(score) else math.nan for score in numbers]
    raise UsageError(
        f"scorer {name}: expected a score for each of {count} images, a tensor of shape ({count},), got {got}; {MEND}"
    )
