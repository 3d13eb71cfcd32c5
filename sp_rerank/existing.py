"""Ranks images that exist already. Knows nothing of how they were made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sp_rerank import images, ranking
from sp_rerank.errors import UnreadableImageError
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
    """An image file with its place in the order; see `Ranked` for the fields."""

    file: Path
    score: float
    rank: int
    tie_group: int


def rank_files(
    scorer: Scorer, prompt: str, files: Sequence[Path], top_k: int | None = None
) -> tuple[list[RankedFile], list[UnreadableImageError]]:
    """Rank image files, holding a few of them in memory at a time.

    Returns:
        The ranking of those that can be read, the best first, and an error for each that cannot.
    """
    readable: list[Path] = []
    scores: list[float] = []
    unreadable: list[UnreadableImageError] = []
    for start in range(0, len(files), FILES_AT_ONCE):
        pictures = []
        for file in files[start : start + FILES_AT_ONCE]:
            try:
                pictures.append(images.open_image(file))
                readable.append(file)
            except UnreadableImageError as error:
                unreadable.append(error)
        scores += [float(score) for score in scorer.score(prompt, pictures)] if pictures else []
    places = ranking.order(scores)[:top_k]
    groups = ranking.tie_groups([scores[i] for i in places])
    return [RankedFile(readable[i], scores[i], r, groups[r - 1]) for r, i in enumerate(places, start=1)], unreadable
