"""Asks several scorers about many images, files or PIL images, and holds no more of them at a time than a batch.

Files are read ahead by threads while a batch is scored; a large one is scored alone. Knows scorers of every kind, means
of ranks and comparisons of pairs among them; knows nothing of orders, ties or choices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sp_rerank.errors import NothingUsableError, UnreadableImageError, UsageError
from sp_rerank.scorers.ensemble import MeanRank, with_members
from sp_rerank.scorers.pairwise import by_kind, utilities
from sp_rerank.scorers.scoring import name_of, score_with_sigma
from sp_rerank.stats import ranking
from sp_rerank.storage import images
from sp_rerank.storage.read_ahead import read_ahead, reader_count

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


@dataclass(slots=True)
class Scored:
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


def score_all(
    scorers: Sequence[Scorer | PairScorer],
    prompt: str,
    sources: Sequence[Path] | Sequence[Image.Image],
    embed: Embed | None = None,
    readers: int | None = None,
) -> Scored:
    """Ask every scorer about every image.

    Args:
        scorers: With different names. A mean of ranks is made of its members' scores, which come back too, behind it.
        prompt: What the images should show.
        sources: Files, each of them read once (one above PIXELS_AT_ONCE once for each scorer) and let go, or PIL images
            of any sizes and modes.
        embed: What makes embeddings of images too; None for none.
        readers: Number of threads that read files; None takes one for each CPU, see `read_ahead.reader_count`.

    Raises:
        UsageError: if there is no scorer, two have the same name, or one fails or does not give a score for each image.
        NothingUsableError: if a scorer gives no finite score for any of the images.
    """
    names = _checked_names(scorers)
    single, pairs = by_kind(scorers)
    ensembles = [scorer for scorer in single if isinstance(scorer, MeanRank)]
    asked = [scorer for scorer in single if not isinstance(scorer, MeanRank)]
    for ensemble in ensembles:
        asked = with_members(ensemble, asked)
    scored = _score_in_batches(asked, prompt, sources, embed, readers)
    for ensemble in ensembles:
        members = [scored.scores[member.name] for member in ensemble.members]
        scored.scores[ensemble.name] = [-mean for mean in ranking.mean_ranks(members)]
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


def _score_in_batches(
    scorers: Sequence[Scorer],
    prompt: str,
    sources: Sequence[Path] | Sequence[Image.Image],
    embed: Embed | None,
    readers: int | None,
) -> Scored:
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
        owned: Whether the images are needed nowhere else, so that the last scorer may take them apart.
    """

    def __init__(self, scorers: Sequence[Scorer], prompt: str, embed: Embed | None, *, owned: bool) -> None:
        self.scored = Scored({name_of(scorer): [] for scorer in scorers})
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
