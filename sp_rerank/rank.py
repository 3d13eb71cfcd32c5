"""Ranks images that exist already, PIL images or files. Knows nothing of how they were made."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sp_rerank.errors import NothingUsableError, UnreadableImageError, UsageError
from sp_rerank.run.summary import ranked_html
from sp_rerank.scorers.calibration import calibration_of, margin_of
from sp_rerank.scorers.ensemble import MeanRank, with_members
from sp_rerank.scorers.pairwise import by_kind, utilities
from sp_rerank.scorers.scoring import embedder, name_of, score_with_sigma
from sp_rerank.stats import diversity, ranking
from sp_rerank.storage import images
from sp_rerank.storage.read_ahead import read_ahead, reader_count
from sp_rerank.types import Candidate, Ranked

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from sp_rerank.types import PairScorer, Scorer

    Embed = Callable[[Sequence[Image.Image]], Tensor]

FILES_AT_ONCE = 16
PIXELS_AT_ONCE = 16_000_000
"""Of the images that are scored together; a larger image is scored alone."""
BATCHES_READY = 2
"""Batches of files that are read while one is scored."""


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
    scored = _score_all([scorer], prompt, pictures)
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
    scored = _score_all(scorers, prompt, files, embed, readers)
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


@dataclass(slots=True)
class _Scored:
    """What scorers make of images.

    Attributes:
        readable: Places of those that can be read, in the order of the rest.
        scores: By the name of each scorer.
        embedded: By the first scorer, where asked for.
        unreadable: An error for each of the others.
        sigmas: By the name of each scorer that tells them, the standard deviations of its scores.
    """

    scores: dict[str, list[float]]
    readable: list[int] = field(default_factory=list)
    embedded: list[list[float]] = field(default_factory=list)
    unreadable: list[UnreadableImageError] = field(default_factory=list)
    sigmas: dict[str, list[float]] = field(default_factory=dict)


def _score_all(
    scorers: Sequence[Scorer | PairScorer],
    prompt: str,
    sources: Sequence[Path] | Sequence[Image.Image],
    embed: Embed | None = None,
    readers: int | None = None,
) -> _Scored:
    """Ask every scorer about every image, and hold no more of those that are files than are scored together.

    A mean of ranks is made of its members' scores, which come back too, behind it.
    """
    names = _checked_names(scorers)
    single, pairs = by_kind(scorers)
    scored = _score_each(single, prompt, sources, embed, readers)
    for scorer in pairs:
        found = utilities(scorer, prompt, len(scored.readable), lambda i: _image_of(sources[scored.readable[i]]))
        scored.scores[name_of(scorer)], scored.sigmas[name_of(scorer)] = found.mean, found.sigma
    scored.scores = {name: scored.scores[name] for name in dict.fromkeys([*names, *scored.scores])}
    return scored


def _checked_names(scorers: Sequence[Scorer | PairScorer]) -> list[str]:
    names = [name_of(scorer) for scorer in scorers]
    if not names or len(set(names)) < len(names):
        raise UsageError(f"expected one or more scorers, each once, got {', '.join(names) or 'none'}")
    return names


def _score_each(
    scorers: Sequence[Scorer],
    prompt: str,
    sources: Sequence[Path] | Sequence[Image.Image],
    embed: Embed | None,
    readers: int | None,
) -> _Scored:
    """`_score_all` by scorers that score each image by itself, and by means of their ranks."""
    ensembles = [scorer for scorer in scorers if isinstance(scorer, MeanRank)]
    asked = [scorer for scorer in scorers if not isinstance(scorer, MeanRank)]
    for ensemble in ensembles:
        asked = with_members(ensemble, asked)
    scored = _score_in_batches(asked, prompt, sources, embed, readers)
    columns = {
        ensemble.name: [-mean for mean in ranking.mean_ranks([scored.scores[m.name] for m in ensemble.members])]
        for ensemble in ensembles
    }
    order = dict.fromkeys([*map(name_of, scorers), *scored.scores])
    scored.scores = {name: {**columns, **scored.scores}[name] for name in order}
    return scored


def _score_in_batches(
    scorers: Sequence[Scorer],
    prompt: str,
    sources: Sequence[Path] | Sequence[Image.Image],
    embed: Embed | None,
    readers: int | None,
) -> _Scored:
    batch = _Batch(scorers, prompt, embed, owned=all(isinstance(source, Path) for source in sources))
    with closing(_opened(sources, readers or reader_count())) as opened:
        for place, image in enumerate(opened):
            if image is None:
                batch.score_large(place, sources[place])
            elif isinstance(image, UnreadableImageError):
                batch.scored.unreadable.append(image)
            else:
                batch.add(place, image)
    batch.score()
    for name, scores in batch.scored.scores.items():
        if scores and all(map(math.isnan, scores)):
            raise NothingUsableError(f"scorer {name}: expected finite scores, got none for any of {len(scores)} images")
    return batch.scored


class _Batch:
    """Images that wait until enough of them are there to be scored together.

    Args:
        scorers: Each is asked about each image.
        prompt: What the images should show.
        embed: Asked too, if it is not None.
        owned: Whether nobody else needs the images, so that the last scorer may take them apart.
    """

    def __init__(self, scorers: Sequence[Scorer], prompt: str, embed: Embed | None, *, owned: bool) -> None:
        self.scored = _Scored({name_of(scorer): [] for scorer in scorers})
        self._scorers, self._prompt, self._embed = scorers, prompt, embed
        self._owned = owned and embed is None
        self._waiting: list[Image.Image] = []

    def add(self, place: int, image: Image.Image) -> None:
        """Let an image wait; those before it are scored if it does not fit beside them."""
        if len(self._waiting) == FILES_AT_ONCE or sum(map(_pixels, [*self._waiting, image])) > PIXELS_AT_ONCE:
            self.score()
        self._waiting.append(image)
        self.scored.readable.append(place)

    def score(self) -> None:
        """Ask about the images that wait."""
        for scorer in self._scorers:
            self._ask(scorer, self._waiting, last_use=self._owned and scorer is self._scorers[-1])
        if self._embed and self._waiting:
            self.scored.embedded += self._embed(self._waiting).tolist()
        self._waiting.clear()

    def score_large(self, place: int, file: Path | Image.Image) -> None:
        """Ask about a large file after those that wait, with a reading of its own for each, one after another."""
        self.score()
        opened = _open_or_error(file)
        if isinstance(opened, UnreadableImageError):
            self.scored.unreadable.append(opened)
            return
        held = [opened]
        del opened  # the list holds it alone, so that a scorer can let it go
        for scorer in self._scorers:
            held = held or [_image_of(file)]
            self._ask(scorer, held, last_use=True)
            held.clear()
        if self._embed:
            self.scored.embedded += self._embed([_image_of(file)]).tolist()
        self.scored.readable.append(place)

    def _ask(self, scorer: Scorer, pictures: list[Image.Image], *, last_use: bool) -> None:
        scores, sigmas = score_with_sigma(scorer, self._prompt, pictures, last_use=last_use)
        self.scored.scores[name_of(scorer)] += scores
        if sigmas is not None:
            self.scored.sigmas.setdefault(name_of(scorer), []).extend(sigmas)


def _opened(
    sources: Sequence[Path] | Sequence[Image.Image], readers: int
) -> Generator[Image.Image | UnreadableImageError | None]:
    """The images, files of them read ahead; what comes in place of an image as `read_ahead` says."""
    paths = [source for source in sources if isinstance(source, Path)]
    if len(paths) < len(sources):
        yield from map(_open_or_error, sources)
        return
    yield from read_ahead(
        paths,
        files=BATCHES_READY * FILES_AT_ONCE,
        pixels=BATCHES_READY * PIXELS_AT_ONCE,
        largest=PIXELS_AT_ONCE,
        readers=readers,
    )


def _open_or_error(source: Path | Image.Image) -> Image.Image | UnreadableImageError:
    try:
        return _image_of(source)
    except UnreadableImageError as error:
        return error


def _image_of(source: Path | Image.Image) -> Image.Image:
    return images.open_image(source) if isinstance(source, Path) else source


def _pixels(image: Image.Image) -> int:
    return image.width * image.height
