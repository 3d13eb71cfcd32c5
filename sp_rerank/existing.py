"""Ranks images that exist already. Knows nothing of how they were made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sp_rerank import images, ranking
from sp_rerank.errors import SpRerankError, UnreadableImageError, UsageError
from sp_rerank.types import Candidate, Ranked

if TYPE_CHECKING:
    from PIL import Image

    from sp_rerank.types import Scorer

FILES_AT_ONCE = 16  # opened together; a large photograph takes 200 MB


def rank(scorer: Scorer, prompt: str, pictures: Sequence[Image.Image], top_k: int | None = None) -> list[Ranked]:
    """Rank images.

    Args:
        scorer: what ranks them.
        prompt: what they should show.
        pictures: PIL images of any sizes; the index of each goes into its result, its seed is -1.
        top_k: how many to return; None returns all, those with a non-finite score last.

    Returns:
        The best first.
    """
    scores = [float(score) for score in scorer.score(prompt, list(pictures))]
    places = ranking.order(scores)[:top_k]
    return ranked([Candidate(i, -1, pictures[i].convert("RGB")) for i in places], [scores[i] for i in places])


def ranked(candidates: Sequence[Candidate], scores: Sequence[float]) -> list[Ranked]:
    """Candidates that are in order already, with their ranks; only equal scores tie."""
    groups = ranking.tie_groups(scores)
    return [
        Ranked(candidate, score, rank, group)
        for rank, (candidate, score, group) in enumerate(zip(candidates, scores, groups, strict=True), start=1)
    ]


@dataclass(frozen=True, slots=True)
class RankedFile:
    """An image file with its place in the order.

    Attributes:
        file: the image.
        rank: by the first scorer; 1 = best.
        tie_group: by the first scorer; files of one group are not reliably told apart.
        scores: by the name of each scorer, in its own scale; higher is better.
        ranks: by the name of each scorer, among all files that can be read.
    """

    file: Path
    rank: int
    tie_group: int
    scores: dict[str, float]
    ranks: dict[str, int]


def rank_files(
    scorers: Sequence[Scorer], prompt: str, files: Sequence[Path], top_k: int | None = None
) -> tuple[list[RankedFile], list[UnreadableImageError]]:
    """Rank image files by the first of several scorers, reading each file once and holding a few in memory at a time.

    Returns:
        The ranking of those that can be read, the best first, and an error for each that cannot.

    Raises:
        UsageError: if there is no scorer, two have the same name, or one gives another number of scores than of images.
        SpRerankError: of the kind that a scorer raises, with the scorer's name.
    """
    names = [scorer.name for scorer in scorers]
    if not names or len(set(names)) < len(names):
        raise UsageError(f"expected one or more scorers, each once, got {', '.join(names) or 'none'}")
    readable: list[Path] = []
    scores: dict[str, list[float]] = {name: [] for name in names}
    unreadable: list[UnreadableImageError] = []
    for start in range(0, len(files), FILES_AT_ONCE):
        pictures = []
        for file in files[start : start + FILES_AT_ONCE]:
            try:
                pictures.append(images.open_image(file))
                readable.append(file)
            except UnreadableImageError as error:
                unreadable.append(error)
        for name, scorer in zip(names, scorers, strict=True):
            scores[name] += _score(scorer, name, prompt, pictures) if pictures else []
    orders = {name: ranking.order(scores[name]) for name in names}
    ranks = {name: {i: rank for rank, i in enumerate(orders[name], start=1)} for name in names}
    places = orders[names[0]][:top_k]
    groups = ranking.tie_groups([scores[names[0]][i] for i in places])
    return [
        RankedFile(
            readable[i],
            rank,
            group,
            {name: scores[name][i] for name in names},
            {name: ranks[name][i] for name in names},
        )
        for rank, (i, group) in enumerate(zip(places, groups, strict=True), start=1)
    ], unreadable


def _score(scorer: Scorer, name: str, prompt: str, pictures: list[Image.Image]) -> list[float]:
    try:
        scores = [float(score) for score in scorer.score(prompt, pictures)]
    except SpRerankError as error:
        raise type(error)(f"scorer {name}: {error}") from error
    except Exception as error:  # a bug, or the machine's memory: what it is must stay visible
        error.add_note(f"raised by the scorer {name}")
        raise
    if len(scores) != len(pictures):
        raise UsageError(f"scorer {name}: expected a score for each of {len(pictures)} images, got {len(scores)}")
    return scores
