"""How much a scorer changes with what should not matter: HP&CC.

HP&CC(r), see `sp_rerank.storage.perturbation`: an image is flipped horizontally and its center cropped to the side
ratio r, then the scorer's own preprocessing sees it; both images of a pair alike. Knows groups and scores; knows
nothing of how a scorer works.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from sp_rerank.errors import UsageError
from sp_rerank.report.tables import add_legend, new_figure, percent, table, to_svg
from sp_rerank.stats import agreement
from sp_rerank.stats.agreement import Estimate
from sp_rerank.storage.perturbation import RATIOS, flip_and_crop
from sp_rerank.train.accuracy import macro_accuracy, micro_accuracy
from sp_rerank.train.preferences import PreferenceGroup
from sp_rerank.train.scores import ScoredGroup, View, score_data

if TYPE_CHECKING:
    from sp_rerank.types import Scorer

TOP_K = 4


@dataclass(frozen=True, slots=True)
class Perturbed:
    """A scorer on perturbed images, beside itself on the images as they are.

    Attributes:
        ratio: Side ratio of HP&CC; None is the images as they are.
        accuracy: micro, of the strict pairs.
        macro: The same, a prompt's inversions counted and the mean taken over prompts.
        flipped: share of the group's labeled pairs whose order by score is another than before; becoming or ceasing to
            be equal counts. n is the pairs.
        shift: mean |S - S'| over the standard deviation of S, both over all images of all prompts.
        kendall: tau-b within a group before and after, mean over groups where it is defined.
        top_k: overlap of the TOP_K best within a group before and after, mean over groups of more than TOP_K images.
    """

    ratio: float | None
    accuracy: Estimate
    macro: Estimate
    flipped: Estimate
    shift: float
    kendall: Estimate
    top_k: Estimate


@dataclass(frozen=True, slots=True)
class Robustness:
    """What HP&CC does to a scorer on a data set.

    Attributes:
        data: name of the data set.
        scorer: name of the scorer.
        groups: Number of groups with at least one pair.
        images: scored, each as it is and at every ratio.
        skipped: why each of the others could not be read, by its name.
        rows: A row a view, the images as they are first.
    """

    data: str
    scorer: str
    groups: int
    images: int
    skipped: dict[str, str]
    rows: tuple[Perturbed, ...]


def robustness(
    scorer: Scorer,
    groups: Iterable[PreferenceGroup],
    *,
    data: str,
    ratios: Sequence[float] = RATIOS,
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Robustness:
    """Score every image as it is and perturbed.

    Args:
        scorer: The scorer to try.
        groups: read as they are used; an image is opened once.
        data: name of the data set, for the tables.
        ratios: Ratios of the sides after the crop, in (0, 1].
        batch_size: Number of images scored at once.
        seed: Seed of the bootstrap over prompts.
        progress: Called with the number of images done, scored in all ways or skipped.

    Raises:
        NothingUsableError: if no pair of images could be read.
        UsageError: if a ratio is out of its range, the scorer does not give a score for each image, and as
            `read_preferences`.
    """
    views = views_of(ratios)
    scored, skipped = score_data(scorer, groups, data=data, batch_size=batch_size, views=views, progress=progress)
    return robustness_of(scored, ratios, scorer=scorer.name, data=data, skipped=skipped, seed=seed)


def views_of(ratios: Sequence[float]) -> list[View]:
    """The images as they are, and under HP&CC at each ratio.

    Raises:
        UsageError: if a ratio is out of its range.
    """
    if not all(0 < ratio <= 1 for ratio in ratios):
        raise UsageError(f"expected ratios above 0 and at most 1, got {', '.join(map(str, ratios))}")
    return [lambda image: image, *(partial(flip_and_crop, ratio=ratio) for ratio in ratios)]


def robustness_of(
    scored: Sequence[ScoredGroup],
    ratios: Sequence[float],
    *,
    scorer: str,
    data: str,
    skipped: dict[str, str],
    seed: int = 0,
) -> Robustness:
    """What scores of `views_of(ratios)` say; further arguments as the attributes of `Robustness`."""
    return Robustness(
        data=data,
        scorer=scorer,
        groups=len(scored),
        images=sum(group.scores.shape[1] for group in scored),
        skipped=skipped,
        rows=tuple(_row(scored, view, ratio, seed) for view, ratio in enumerate((None, *ratios))),
    )


def _row(scored: Sequence[ScoredGroup], view: int, ratio: float | None, seed: int) -> Perturbed:
    return Perturbed(
        ratio=ratio,
        accuracy=micro_accuracy(scored, view=view, seed=seed),
        macro=macro_accuracy(scored, view=view, seed=seed),
        flipped=agreement.ratio([order_flips(g, view) for g in scored], [len(g.pairs) for g in scored], seed=seed),
        shift=mean_shift(scored, view),
        kendall=_mean([agreement.kendall(g.scores[0], g.scores[view]) for g in scored], seed),
        top_k=_mean(
            [
                agreement.top_k_overlap(list(g.scores[0]), list(g.scores[view]), TOP_K)
                for g in scored
                if g.scores.shape[1] > TOP_K
            ],
            seed,
        ),
    )


def order_flips(group: ScoredGroup, view: int) -> int:
    """How many of a group's pairs a view orders otherwise than the images as they are, view 0."""
    first, second = np.array([(pair.first, pair.second) for pair in group.pairs]).T
    before, after = (np.sign(scores[first] - scores[second]) for scores in (group.scores[0], group.scores[view]))
    return int(((before != after) & ~(np.isnan(before) & np.isnan(after))).sum())


def mean_shift(scored: Sequence[ScoredGroup], view: int) -> float:
    """Mean |S - S'| of a view against view 0, over the standard deviation of S; NaN where that is 0."""
    before, after = (np.concatenate([group.scores[v] for group in scored]) for v in (0, view))
    both = np.isfinite(before) & np.isfinite(after)
    spread = float(np.std(before[both])) if both.any() else 0.0
    return float(np.mean(np.abs(before - after)[both])) / spread if spread else math.nan


def _mean(values: Sequence[float], seed: int) -> Estimate:
    defined = [value for value in values if not math.isnan(value)]
    return agreement.ratio(defined, [1] * len(defined), seed=seed)


def markdown(results: Sequence[Robustness]) -> str:
    """A table a data set: a row a scorer and ratio."""
    text = "HP&CC: mirrored, and the center cropped to a side ratio; figures in % [95 % interval over prompts]\n"
    head = ["scorer", "images", "accuracy", "order flips", "mean shift / std", "Kendall tau", f"top-{TOP_K} overlap"]
    for name in dict.fromkeys(result.data for result in results):
        rows = [(result.scorer, row) for result in results if result.data == name for row in result.rows]
        text += f"\n{name}\n\n" + table(head, [[scorer, *_cells(row)] for scorer, row in rows])
    return text


def _cells(row: Perturbed) -> list[str]:
    shift = "" if math.isnan(row.shift) else f"{row.shift:.3f}"
    if row.ratio is None:
        return ["as they are", percent(row.accuracy), "", "", "", ""]
    how = f"HP&CC {row.ratio:g}"
    return [how, *map(percent, (row.accuracy, row.flipped)), shift, *map(percent, (row.kendall, row.top_k))]


def sensitivity_plot(results: Sequence[Robustness]) -> bytes:
    """Accuracy by side ratio as SVG; the images as they are stand at the left."""
    figure = new_figure()
    axes = figure.add_subplot(ylabel="accuracy, %")
    for number, result in enumerate(results):
        views = ["as they are" if row.ratio is None else f"HP&CC {row.ratio:g}" for row in result.rows]
        axes.plot(views, [100 * row.accuracy.value for row in result.rows], marker="o", label=str(number))
    add_legend(axes, [f"{result.scorer.split('@')[0]}, {result.data}" for result in results], "scorer, data")
    return to_svg(figure)
