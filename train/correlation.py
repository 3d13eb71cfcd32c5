"""Whether two scorers agree about which generator is better.

Knows run folders, lists of images and scores; knows nothing of how a scorer works.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sp_rerank.errors import UsageError
from sp_rerank.report.tables import add_legend, new_figure, plain, table, to_svg
from sp_rerank.run.folder import RunDir
from sp_rerank.run.layout import CONFIG
from sp_rerank.scorers.scoring import score_images
from sp_rerank.stats import agreement
from sp_rerank.stats.agreement import Estimate
from sp_rerank.storage.atomic import storage_errors
from sp_rerank.train.preferences import ImageReader, ImageSource

if TYPE_CHECKING:
    from sp_rerank.types import Scorer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Generator:
    """What made images, and its mean score under two scorers.

    Attributes:
        name: Name of the model, with its settings.
        scores: Score by each scorer, in its own scale: the mean over prompts of the mean over a prompt's images.
        images: that went into it.
    """

    name: str
    scores: tuple[float, float]
    images: int


@dataclass(frozen=True, slots=True)
class Correlation:
    """Whether two scorers agree about which generator is better.

    Attributes:
        scorers: Names of the scorers.
        prompts: that every generator has images of; the others do not count, for scores compare within prompts only.
        generators: The generators, a point each.
        pearson: over the points, with an interval from resampling them.
        spearman: The rank correlation over the points, with such an interval.
    """

    scorers: tuple[str, str]
    prompts: int
    generators: tuple[Generator, ...]
    pearson: Estimate
    spearman: Estimate


@dataclass(frozen=True, slots=True)
class Made:
    """An image, what made it and of which prompt; the scores by name that were taken when it was made."""

    generator: str
    prompt: str
    image: ImageSource
    scores: dict[str, float | None]


def read_made(places: Sequence[str | Path]) -> list[Made]:
    """The images of run folders, or of lists: JSON, [{"generator": .., "prompt": .., "image": path}].

    A run's generator is its model with steps, guidance and scheduler. Candidates that a safety checker replaced or that
    are not finite are left out. A list's paths start from its folder.

    Raises:
        UsageError: if a place is neither, or an image is missing.
        StorageError: if a run folder is damaged.
    """
    return [made for place in map(Path, places) for made in (_of_list if place.is_file() else _of_run)(place)]


def _of_run(folder: Path) -> Iterator[Made]:
    if not (folder / CONFIG).is_file():
        raise UsageError(f"{folder} is no run folder and no list; expected one with {CONFIG}, or a JSON file")
    run = RunDir.read(folder)
    config = run.config
    config.require("prompt", "model", "steps", "guidance_scale", "scheduler")
    name = f"{config.model}, {config.steps} steps, guidance {config.guidance_scale:g}, {config.scheduler}"
    for row in run.rows.values():
        if row.status == "ok":
            yield Made(name, config.prompt, ImageSource(run.image(row.index)), row.scores)


def _of_list(file: Path) -> Iterator[Made]:
    with storage_errors(file):
        text = file.read_bytes()
    try:
        entries = [(str(e["generator"]), str(e["prompt"]), file.parent / e["image"]) for e in json.loads(text)]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UsageError(
            f'{file}: expected a JSON list of {{"generator": .., "prompt": .., "image": ..}}, got {error}'
        ) from error
    for generator, prompt, path in entries:
        if not path.is_file():
            raise UsageError(f"{file}: the image {path} is not there; fetch it, or take it out of the list")
        yield Made(generator, prompt, ImageSource(path), {})


def correlate(
    scorers: tuple[Scorer, Scorer],
    made: Sequence[Made],
    *,
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Correlation:
    """Each generator's mean score under two scorers, and how the two go together.

    A score that was stored under the scorer's full name, its hash included, is taken; any other image is scored.

    Args:
        scorers: two different ones.
        made: Images by at least three generators.
        batch_size: Number of images scored at once.
        seed: Seed of the bootstrap over generators.
        progress: Called with the number of images done, by both scorers together.

    Raises:
        UsageError: if the scorers are one, or there are fewer than three generators with usable images of a prompt that
            all of them share.
    """
    first, second = scorers
    if first.name == second.name:
        raise UsageError(f"expected two different scorers, got {first.name} twice")
    reader = ImageReader()
    kept = _of_shared_prompts(made)
    scores = np.empty((2, len(kept)))
    for turn, scorer in enumerate(scorers):
        for done, score in enumerate(_scores(scorer, kept, reader, batch_size), start=1):
            scores[turn, done - 1] = score
            if progress:
                progress(turn * len(kept) + done)
    usable = {id(image): column for image, column in zip(kept, scores.T, strict=True) if np.isfinite(column).all()}
    if lost := len(kept) - len(usable):
        log.warning("%d of %d images have no score by both scorers and are left out", lost, len(kept))
    kept = _of_shared_prompts([image for image in kept if id(image) in usable])
    points = tuple(_generator(name, images, usable) for name, images in _by_generator(kept).items())
    a, b = ([point.scores[side] for point in points] for side in (0, 1))
    return Correlation(
        scorers=(first.name, second.name),
        prompts=len({image.prompt for image in kept}),
        generators=points,
        pearson=agreement.pearson(a, b, seed=seed),
        spearman=agreement.spearman(a, b, seed=seed),
    )


def _by_generator(made: Sequence[Made]) -> dict[str, list[Made]]:
    groups: dict[str, list[Made]] = {}
    for image in made:
        groups.setdefault(image.generator, []).append(image)
    return groups


def _of_shared_prompts(made: Sequence[Made]) -> list[Made]:
    generators = _by_generator(made)
    if len(generators) < 3:
        found = f"{len(generators)}: {'; '.join(generators)}" if generators else "none"
        raise UsageError(f"expected usable images of at least 3 generators, got {found}")
    shared = set.intersection(*({image.prompt for image in images} for images in generators.values()))
    if not shared:
        raise UsageError("the generators have no prompt in common; scores compare images of the same prompts only")
    if left_out := sum(image.prompt not in shared for image in made):
        log.warning("%d images of prompts that not every generator has are left out", left_out)
    return [image for image in made if image.prompt in shared]


def _scores(scorer: Scorer, made: Sequence[Made], reader: ImageReader, batch_size: int) -> Iterator[float]:
    """The score of each image, in order: stored, or taken now; NaN if it cannot be read."""
    for start in range(0, len(made), batch_size):
        batch = made[start : start + batch_size]
        scores = [image.scores.get(scorer.name) for image in batch]
        opened = {i: image for i, s in enumerate(scores) if s is None and (image := reader.read(batch[i].image))}
        taken = score_images(scorer, [batch[i].prompt for i in opened], list(opened.values()))
        fresh = dict(zip(opened, taken, strict=True))
        for i, score in enumerate(scores):
            yield fresh.get(i, math.nan) if score is None else score


def _generator(name: str, made: Sequence[Made], scores: dict[int, NDArray[np.float64]]) -> Generator:
    by_prompt: dict[str, list[NDArray[np.float64]]] = {}
    for image in made:
        by_prompt.setdefault(image.prompt, []).append(scores[id(image)])
    first, second = np.mean([np.mean(several, axis=0) for several in by_prompt.values()], axis=0)
    return Generator(name, (float(first), float(second)), len(made))


def scatter_plot(result: Correlation) -> bytes:
    """A dot a generator, its mean score under the one scorer and under the other, as SVG."""
    x, y = (scorer.split("@")[0] for scorer in result.scorers)
    figure = new_figure()
    rank = f"Spearman {result.spearman.value:.2f}, Pearson {result.pearson.value:.2f}"
    axes = figure.add_subplot(title=rank)
    axes.set_xlabel(plain(f"mean score by {x}"), parse_math=False)
    axes.set_ylabel(plain(f"mean score by {y}"), parse_math=False)
    for number, generator in enumerate(result.generators):
        axes.scatter(*generator.scores, label=str(number))
    add_legend(axes, [generator.name for generator in result.generators], "generator")
    return to_svg(figure)


def markdown(result: Correlation) -> str:
    """A table of the generators, and the correlations with their intervals."""
    rows = [[g.name, str(g.images), *(f"{score:.4f}" for score in g.scores)] for g in result.generators]
    figures = [
        f"{name} {e.value:.3f} [{e.low:.3f}, {e.high:.3f}] over {e.n} generators\n"
        for name, e in (("Spearman", result.spearman), ("Pearson", result.pearson))
    ]
    head = ["generator", "images", *(f"mean score by {name}" for name in result.scorers)]
    return f"{result.prompts} prompts\n\n{table(head, rows)}\n{''.join(figures)}"
