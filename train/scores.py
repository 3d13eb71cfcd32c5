"""Scores of the images of groups, each image scored once. Knows groups and a scorer; knows nothing of what follows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sp_rerank.errors import NothingUsableError
from sp_rerank.scorers.scoring import score_images
from sp_rerank.train.preferences import ImageReader, Pair, PreferenceGroup

if TYPE_CHECKING:
    from PIL import Image

    from sp_rerank.types import Scorer

View = Callable[["Image.Image"], "Image.Image"]
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """A group without its images, with their scores.

    Attributes:
        prompt: Prompt of the group.
        pairs: Pairs of images that could be read, by their numbers among these.
        ranks: Ranks of the images that could be read, or None.
        annotations: Ranks of single annotators, one tuple each.
        scores: (views, images) float64.
    """

    prompt: str
    pairs: tuple[Pair, ...]
    ranks: tuple[float, ...] | None
    annotations: tuple[tuple[float, ...], ...]
    scores: Array


def score_data(
    scorer: Scorer,
    groups: Iterable[PreferenceGroup],
    *,
    data: str,
    batch_size: int = 32,
    views: Sequence[View] = (lambda image: image,),
    progress: Callable[[int], None] | None = None,
) -> tuple[list[ScoredGroup], dict[str, str]]:
    """A whole data set scored, and why each image that could not be read was left out, by its name.

    Args:
        data: name of the data set, for the error; the other arguments as in `score_groups`.

    Raises:
        NothingUsableError: if no pair of images could be read.
        UsageError: as `score_groups`.
    """
    reader = ImageReader()
    scored = list(score_groups(scorer, groups, reader=reader, batch_size=batch_size, views=views, progress=progress))
    if not scored:
        raise NothingUsableError(
            f"{data}: no pair of images could be scored, {len(reader.skipped)} images cannot be read; "
            "expected at least one pair"
        )
    return scored, reader.skipped


def score_groups(
    scorer: Scorer,
    groups: Iterable[PreferenceGroup],
    *,
    reader: ImageReader,
    batch_size: int = 32,
    views: Sequence[View] = (lambda image: image,),
    progress: Callable[[int], None] | None = None,
) -> Iterator[ScoredGroup]:
    """Score each image once a view, in batches that reach across groups; groups without a pair are left out.

    Args:
        scorer: The scorer to ask.
        groups: read as they are used, one after the other.
        reader: opens the images, each once, and remembers those that cannot be read.
        batch_size: Number of images scored at once.
        views: What is done to an image before it is scored.
        progress: Called with the number of images done so far.

    Raises:
        UsageError: naming the scorer, if it raises an error or does not give a score for each image.
    """
    waiting: deque[tuple[PreferenceGroup, list[int], list[float]]] = deque()
    batch: list[_Asked] = []
    done = 0
    for group in groups:
        kept: list[int] = []
        scores: list[float] = []
        waiting.append((group, kept, scores))
        for i, source in enumerate(group.images):
            image = reader.read(source)
            if image is not None:
                kept.append(i)
                batch += [(scores, group.prompt, view(image)) for view in views]
            while len(batch) >= batch_size:
                _answer(scorer, batch[:batch_size])
                del batch[:batch_size]
            done += 1
            if progress:
                progress(done)
        yield from _finished(waiting, batch, len(views))
    if batch:
        _answer(scorer, batch)
    yield from _finished(waiting, [], len(views))


_Asked = tuple[list[float], str, "Image.Image"]
"""Where a score goes to, of which prompt and image."""


def _answer(scorer: Scorer, batch: Sequence[_Asked]) -> None:
    scores = score_images(scorer, [prompt for _, prompt, _ in batch], [image for _, _, image in batch])
    for (place, _, _), score in zip(batch, scores, strict=True):
        place.append(score)


def _finished(
    waiting: deque[tuple[PreferenceGroup, list[int], list[float]]], batch: Sequence[_Asked], views: int
) -> Iterator[ScoredGroup]:
    """The groups before the first one that the batch in hand belongs to."""
    while waiting and not (batch and batch[0][0] is waiting[0][2]):
        group, kept, scores = waiting.popleft()
        number = {i: n for n, i in enumerate(kept)}
        pairs = tuple(
            Pair(number[p.first], number[p.second], p.label) for p in group.pairs if {p.first, p.second} <= set(kept)
        )
        if pairs:
            yield ScoredGroup(
                prompt=group.prompt,
                pairs=pairs,
                ranks=None if group.ranks is None else tuple(group.ranks[i] for i in kept),
                annotations=tuple(tuple(annotation[i] for i in kept) for annotation in group.annotations),
                scores=np.array(scores).reshape(len(kept), views).T,
            )
