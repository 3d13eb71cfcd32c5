"""A run's scores by several scorers: those that its folder holds, and new ones.

An image file is read once, checked against its hash, and decoded at most once for all scorers. What fails is named and
left out, and the rest goes on. Knows run folders and scorers; knows nothing of how views are compared.
"""

from __future__ import annotations

import io
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from sp_rerank.errors import FolderBusyError, SpRerankError, StorageError, UsageError
from sp_rerank.run.folder import REMEDY, RunDir
from sp_rerank.run.writer import add_scores
from sp_rerank.scorers.batches import FILES_AT_ONCE, PIXELS_AT_ONCE
from sp_rerank.scorers.pairwise import by_kind, utilities
from sp_rerank.scorers.scoring import score_images
from sp_rerank.storage import images
from sp_rerank.storage.perturbation import flip_and_crop

if TYPE_CHECKING:
    from PIL import Image

    from sp_rerank.run.records import Row
    from sp_rerank.types import PairScorer, Scorer

NAMED = 10  # candidates that a message names; of more it gives the number


@dataclass
class ScoredRun:
    """A run's sound candidates with every score there is.

    Attributes:
        run: the folder.
        indices: Indices of the candidates.
        scores: Scores by scorer, then by index; NaN where one is not finite, nothing where the scorer fails.
        new_scores: Those that are not in the folder yet, by scorer, then by index.
        perturbed: Scores of perturbed images by scorer and ratio, then by index.
        problems: a line each.
        failed: Scorers that gave no score at all because they failed on every image, with the first reason.
    """

    run: RunDir
    indices: list[int]
    scores: dict[str, dict[int, float]]
    new_scores: dict[str, dict[int, float]]
    perturbed: dict[tuple[str, float], dict[int, float]]
    problems: list[str]
    failed: dict[str, str] = field(default_factory=dict)

    def keep(self) -> None:
        """Write the new scores into the folder; where it cannot be written that is one of the problems."""
        new = {name: scores for name, scores in self.new_scores.items() if scores}
        try:
            if new:
                add_scores(self.run.path, new)
        except (StorageError, FolderBusyError) as error:
            self.problems.append(f"the new scores are not kept: {error}")

    def column(self, name: str) -> list[float]:
        """A scorer's scores in the order of `indices`; NaN where there is no finite one."""
        return [self.scores[name].get(index, math.nan) for index in self.indices]


def score_run(
    run: RunDir,
    scorers: Sequence[Scorer | PairScorer],
    *,
    ratios: Sequence[float] = (),
    progress: Callable[[int], None] | None = None,
) -> ScoredRun:
    """Read a run's images, and score what the run does not hold.

    Args:
        run: the folder; candidates that are flagged, dropped or not finite are left out.
        scorers: Scorers with different names.
        ratios: Crop ratios of HP&CC at which the scorers score every image again; see
            `sp_rerank.storage.perturbation`.
        progress: Called with how many candidates are done since the last call.

    Raises:
        UsageError: if the run holds no scores and no scorer is given.
    """
    run.config.require("prompt")
    rows = [row for _, row in sorted(run.rows.items()) if row.status == "ok"]
    held = dict.fromkeys(name for row in rows for name in row.scores)
    if not held and not scorers:
        raise UsageError(f"{run.path} holds no scores; name a scorer")
    names = list(dict.fromkeys([*held, *(scorer.name for scorer in scorers)]))
    scored = ScoredRun(run, [], {name: {} for name in names}, {s.name: {} for s in scorers}, {}, _left_out(run))
    failures: dict[str, list[tuple[int, str]]] = {}
    single, pairs = by_kind(scorers)
    for count, opened in _batches(run, rows, scored.problems):
        scored.indices += opened
        for index in opened:
            for name, score in run.rows[index].scores.items():
                scored.scores[name][index] = math.nan if score is None else score
        for scorer in single:
            _score(scorer, opened, scored, ratios, failures.setdefault(scorer.name, []))
        if progress:
            progress(count)
    for scorer in pairs:
        _compare_pairs(scorer, scored, ratios, failures.setdefault(scorer.name, []))
    scored.problems += [line for name, failed in failures.items() for line in _failure_lines(name, failed)]
    scored.failed = {name: failed[0][1] for name, failed in failures.items() if failed and not scored.scores[name]}
    return scored


def _left_out(run: RunDir) -> list[str]:
    count = Counter(row.status for row in run.rows.values() if row.status != "ok")
    lines = [f"{number} candidates are left out: {status}" for status, number in sorted(count.items())]
    return lines + ([f"{len(run.missing)} of {run.n} candidates are not made"] if run.missing else [])


_Picture = Callable[[], "Image.Image"]


def _batches(run: RunDir, rows: Sequence[Row], problems: list[str]) -> Iterator[tuple[int, dict[int, _Picture]]]:
    """Rows in parts whose decoded images fit the memory: how many, and what decodes those whose files are sound."""
    count, pixels = 0, 0
    opened: dict[int, _Picture] = {}
    for row in rows:
        png = _sound_file(run, row, problems)
        size = images.pixels_of(png)
        if count == FILES_AT_ONCE or pixels + size > PIXELS_AT_ONCE:
            yield count, opened
            count, pixels, opened = 0, 0, {}
        count, pixels = count + 1, pixels + size
        if png:
            opened[row.index] = _decoder(png, str(run.path / row.file))
    yield count, opened


def _sound_file(run: RunDir, row: Row, problems: list[str]) -> bytes:
    """An image file that is as it was committed; of any other nothing."""
    try:
        return run.image_bytes(row.index)
    except StorageError as error:
        why = str(error).removeprefix(f"{run.path}{os.sep}").removesuffix(REMEDY)
        problems.append(f"{why}; left out")
        return b""


def _decoder(png: bytes, name: str) -> _Picture:
    """What decodes an image when it is first asked for."""
    decoded: list[Image.Image] = []

    def picture() -> Image.Image:
        if not decoded:
            decoded.append(images.read_image(lambda: io.BytesIO(png), name))
        return decoded[0]

    return picture


def _score(
    scorer: Scorer,
    opened: Mapping[int, _Picture],
    scored: ScoredRun,
    ratios: Sequence[float],
    failures: list[tuple[int, str]],
) -> None:
    """Add a scorer's scores of some images to those of the run."""
    ask = partial(_scores_of, scorer, scored.run.config.prompt)
    new = [index for index in opened if index not in scored.scores[scorer.name]]
    taken, failed = ask({index: opened[index] for index in new})
    scored.scores[scorer.name] |= taken
    scored.new_scores[scorer.name] |= taken
    failures += failed
    usable = [index for index in opened if index in scored.scores[scorer.name]]
    for ratio in ratios:
        views = {index: partial(_view, opened[index], ratio) for index in usable}
        scored.perturbed.setdefault((scorer.name, ratio), {}).update(ask(views)[0])


def _compare_pairs(
    scorer: PairScorer, scored: ScoredRun, ratios: Sequence[float], failures: list[tuple[int, str]]
) -> None:
    """Add a pair scorer's utilities of all images of the run; a new image changes all of them."""
    run, name = scored.run, scorer.name
    ask = partial(utilities, scorer, run.config.prompt, len(scored.indices))
    try:
        if any(index not in scored.scores[name] for index in scored.indices):
            found = ask(lambda place: run.read_image(scored.indices[place]))
            scored.scores[name] = scored.new_scores[name] = dict(zip(scored.indices, found.mean, strict=True))
        for ratio in ratios:
            found = ask(lambda place, ratio=ratio: flip_and_crop(run.read_image(scored.indices[place]), ratio))
            scored.perturbed[name, ratio] = dict(zip(scored.indices, found.mean, strict=True))
    except SpRerankError as error:
        failures += [(index, str(error)) for index in scored.indices]


def _view(picture: _Picture, ratio: float) -> Image.Image:
    return flip_and_crop(picture(), ratio)


def _scores_of(
    scorer: Scorer, prompt: str, pictures: Mapping[int, _Picture]
) -> tuple[dict[int, float], list[tuple[int, str]]]:
    """Scores by index, NaN where not finite, and for each image that the scorer fails on, why.

    Out of memory and a lost device are not the image's fault: they end the comparison, see `score_images`.
    """
    if not pictures:
        return {}, []
    try:
        scores = score_images(scorer, prompt, [picture() for picture in pictures.values()])
    except SpRerankError as error:
        if len(pictures) == 1:
            return {}, [(index, str(error)) for index in pictures]
    else:
        return dict(zip(pictures, scores, strict=True)), []
    one_by_one = [_scores_of(scorer, prompt, {index: picture}) for index, picture in pictures.items()]
    return (
        {index: score for scores, _ in one_by_one for index, score in scores.items()},
        [failure for _, failures in one_by_one for failure in failures],
    )


def _failure_lines(name: str, failed: Sequence[tuple[int, str]]) -> Iterator[str]:
    """A line for each reason, with the candidates."""
    for why in dict.fromkeys(why for _, why in failed):
        yield f"{named([index for index, reason in failed if reason == why])}: {why}"


def named(indices: Sequence[int]) -> str:
    """Candidates in words, up to NAMED of them by their index."""
    shown = ", ".join(map(str, indices[:NAMED]))
    more = f" and {len(indices) - NAMED} more" if len(indices) > NAMED else ""
    return f"candidate{'s' if len(indices) > 1 else ''} {shown}{more}"
