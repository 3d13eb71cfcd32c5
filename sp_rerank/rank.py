"""Ranks images that exist already, PIL images or files. Knows nothing of how they were made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sp_rerank.run.summary import ranked_html
from sp_rerank.scorers.batches import score_all
from sp_rerank.scorers.calibration import calibration_of, margin_of
from sp_rerank.scorers.scoring import embedder, name_of
from sp_rerank.stats import diversity, ranking
from sp_rerank.storage import images
from sp_rerank.types import Candidate, Ranked

if TYPE_CHECKING:
    from PIL import Image

    from sp_rerank.errors import UnreadableImageError
    from sp_rerank.types import PairScorer, Scorer


class RankedImages(list[Ranked]):
    """Ranked images, the best first; a notebook shows them."""

    def _repr_html_(self) -> str:
        """Thumbnails with ranks and scores."""
        return ranked_html(self, f"{len(self)} ranked images")


def rank(
    scorer: Scorer | PairScorer, prompt: str, pictures: Sequence[Image.Image], top_k: int | None = None
) -> RankedImages:
    """Rank images.

    Args:
        scorer: What ranks them; one that compares pairs gives utilities in log-odds, see `sp_rerank.scorers.pairwise`.
        prompt: What they should show.
        pictures: PIL images of any sizes and modes; the index of each goes into its result, its seed is None.
        top_k: How many to return; None returns all, those with a non-finite score last.

    Returns:
        The best first, as RGB images; see `sp_rerank.storage.images.to_rgb`.

    Raises:
        UsageError: if the scorer fails or does not give a score for each image, see
            `sp_rerank.scorers.scoring.score_images`, or its calibration is damaged.
        NothingUsableError: if it gives no finite score for any of the images.
    """
    calibration_of(scorer)  # a damaged one is told before the work
    scored = score_all([scorer], prompt, pictures)
    name = name_of(scorer)
    scores, margin = scored.scores[name], margin_of(scorer, scored.sigmas.get(name))
    places = ranking.order(scores)[:top_k]
    candidates = [Candidate(i, None, images.to_rgb(pictures[i])) for i in places]
    return RankedImages(ranked(candidates, [scores[i] for i in places], margin, prompt))


def ranked(
    candidates: Sequence[Candidate], scores: Sequence[float], margin: float = 0.0, prompt: str = ""
) -> list[Ranked]:
    """Candidates that are in order already, with their ranks and tie groups.

    Args:
        candidates: The best first.
        scores: Those of the candidates.
        margin: The gap below which two of them are not told apart, see `sp_rerank.scorers.calibration.margin_of`; with
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
        file: The image.
        rank: By the first scorer; 1 = best.
        tie_group: By the first scorer, among all files that can be read; files of one group are not reliably told
            apart. Where nothing is known of the scorer's gaps only equal scores tie.
        scores: By the name of each scorer, in its own scale; higher is better; NaN where it is not finite.
        ranks: By the name of each scorer, among all files that can be read.
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
        files: The best first.
        unreadable: An error for each file that cannot be read.
        readable: How many files can be read.
        tied: How many of these are not reliably told apart from the best, which is one of them.
        copies: How many of `files` are as alike as copies to one before them; None unless the choice is diverse.
        cost: What a diverse choice gives away: the mean score of as many of the best, less that of `files`; else 0.
    """

    files: list[RankedFile]
    unreadable: list[UnreadableImageError]
    readable: int
    tied: int
    copies: int | None
    cost: float


def rank_files(
    scorers: Sequence[Scorer | PairScorer],
    prompt: str,
    files: Sequence[Path],
    top_k: int | None = None,
    *,
    diverse: bool = False,
    readers: int | None = None,
) -> FileRanking:
    """Rank image files by the first of several scorers, reading each file once and holding a few in memory at a time.

    Threads read the files of the next batches while one is scored.

    Args:
        scorers: With different names.
        prompt: What the images should show.
        files: Paths of the images.
        top_k: How many to return; None returns all.
        diverse: Return `top_k` that are unlike each other instead of the best, by the first scorer's embeddings; see
            `sp_rerank.stats.diversity`. Their ranks tell which better ones stand back.
        readers: Number of threads that read files; None takes one for each CPU, see `read_ahead.reader_count`.

    Raises:
        UsageError: if there is no scorer, two have the same name, one fails or does not give a score for each image,
            the calibration of the first is damaged, or it has no embeddings and `diverse` is asked for.
        NothingUsableError: if a scorer gives no finite score for any of the images.
    """
    embed = embedder(scorers[0]) if diverse and scorers else None
    if scorers:
        calibration_of(scorers[0])  # a damaged one is told before the work
    scored = score_all(scorers, prompt, files, embed, readers)
    names = list(scored.scores)
    margin = margin_of(scorers[0], scored.sigmas.get(names[0]))
    orders = {name: ranking.order(scored.scores[name]) for name in names}
    ranks = {name: {i: rank for rank, i in enumerate(orders[name], start=1)} for name in names}
    first, order = scored.scores[names[0]], orders[names[0]]
    groups = dict(zip(order, ranking.tie_groups([first[i] for i in order], margin), strict=True))
    places, cost, copies = order[:top_k], 0.0, None
    if embed and scored.readable:
        chosen = diversity.diverse(first, scored.embedded, top_k or len(order))
        places, cost = sorted(chosen, key=lambda i: ranks[names[0]][i]), diversity.score_cost(first, chosen)
        copies = diversity.copies([scored.embedded[i] for i in places])
    found = [
        RankedFile(
            files[scored.readable[i]],
            ranks[names[0]][i],
            groups[i],
            {name: scored.scores[name][i] for name in names},
            {name: ranks[name][i] for name in names},
        )
        for i in places
    ]
    tied = sum(groups[i] == groups[order[0]] for i in order) if order else 0
    return FileRanking(found, scored.unreadable, len(order), tied, copies, cost)
