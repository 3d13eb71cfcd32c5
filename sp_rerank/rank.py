"""Ranks images that exist already. Knows nothing of how they were made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sp_rerank.errors import SpRerankError, UnreadableImageError, UsageError
from sp_rerank.scorers import embedder
from sp_rerank.scorers.calibration import margin_of
from sp_rerank.stats import diversity, ranking
from sp_rerank.storage import images
from sp_rerank.types import Candidate, Ranked

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from sp_rerank.types import Scorer

FILES_AT_ONCE = 16  # opened together; a large photograph takes 200 MB


def rank(scorer: Scorer, prompt: str, pictures: Sequence[Image.Image], top_k: int | None = None) -> list[Ranked]:
    """Rank images.

    Args:
        scorer: what ranks them.
        prompt: what they should show.
        pictures: PIL images of any sizes; the index of each goes into its result, its seed is None.
        top_k: how many to return; None returns all, those with a non-finite score last.

    Returns:
        The best first.
    """
    scores = [float(score) for score in scorer.score(prompt, list(pictures))]
    places = ranking.order(scores)[:top_k]
    candidates = [Candidate(i, None, pictures[i].convert("RGB")) for i in places]
    return ranked(candidates, [scores[i] for i in places], margin_of(scorer), prompt)


def ranked(
    candidates: Sequence[Candidate], scores: Sequence[float], margin: float = 0.0, prompt: str = ""
) -> list[Ranked]:
    """Candidates that are in order already, with their ranks and tie groups.

    Args:
        candidates: the best first.
        scores: of the candidates.
        margin: the gap below which two of them are not told apart, see `sp_rerank.scorers.calibration.margin_of`; with
            0 only equal scores tie.
        prompt: What the images should show.
    """
    groups = ranking.tie_groups(scores, margin)
    return [
        Ranked(candidate, score, rank, group, prompt)
        for rank, (candidate, score, group) in enumerate(zip(candidates, scores, groups, strict=True), start=1)
    ]


@dataclass(frozen=True, slots=True)
class RankedFile:
    """An image file with its place in the order.

    Attributes:
        file: the image.
        rank: by the first scorer; 1 = best.
        tie_group: by the first scorer, among all files that can be read; files of one group are not reliably told
            apart. Where nothing is known of the scorer's gaps only equal scores tie.
        scores: by the name of each scorer, in its own scale; higher is better.
        ranks: by the name of each scorer, among all files that can be read.
    """

    file: Path
    rank: int
    tie_group: int
    scores: dict[str, float]
    ranks: dict[str, int]


@dataclass(frozen=True, slots=True)
class FileRanking:
    """Image files in order.

    Attributes:
        files: the best first.
        unreadable: an error for each file that cannot be read.
        cost: what a diverse choice gives away: the mean score of as many of the best, less that of `files`; else 0.
    """

    files: list[RankedFile]
    unreadable: list[UnreadableImageError]
    cost: float


def rank_files(
    scorers: Sequence[Scorer],
    prompt: str,
    files: Sequence[Path],
    top_k: int | None = None,
    *,
    diverse: bool = False,
) -> FileRanking:
    """Rank image files by the first of several scorers, reading each file once and holding a few in memory at a time.

    Args:
        scorers: with different names.
        prompt: what the images should show.
        files: of the images.
        top_k: how many to return; None returns all.
        diverse: return `top_k` that are no near-copies of each other instead of the best, by the first scorer's
            embeddings; see `sp_rerank.stats.diversity`. Their ranks tell which better ones stand back.

    Raises:
        UsageError: if there is no scorer, two have the same name, one gives another number of scores than of images, or
            the first has no embeddings and `diverse` is asked for.
        SpRerankError: of the kind that a scorer raises, with the scorer's name.
    """
    names = [scorer.name for scorer in scorers]
    if not names or len(set(names)) < len(names):
        raise UsageError(f"expected one or more scorers, each once, got {', '.join(names) or 'none'}")
    embed = embedder(scorers[0]) if diverse else None
    readable: list[Path] = []
    embedded: list[Tensor] = []
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
        if embed and pictures:
            embedded += embed(pictures)
    orders = {name: ranking.order(scores[name]) for name in names}
    ranks = {name: {i: rank for rank, i in enumerate(orders[name], start=1)} for name in names}
    first, order = scores[names[0]], orders[names[0]]
    groups = dict(zip(order, ranking.tie_groups([first[i] for i in order], margin_of(scorers[0])), strict=True))
    places, cost = order[:top_k], 0.0
    if embed and readable:
        vectors = [vector.tolist() for vector in embedded]
        chosen = diversity.diverse(first, vectors, top_k or len(readable))
        places, cost = sorted(chosen, key=order.index), diversity.score_cost(first, chosen)
    ranked_files = [
        RankedFile(
            readable[i],
            ranks[names[0]][i],
            groups[i],
            {name: scores[name][i] for name in names},
            {name: ranks[name][i] for name in names},
        )
        for i in places
    ]
    return FileRanking(ranked_files, unreadable, cost)


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
