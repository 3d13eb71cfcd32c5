"""How often a scorer orders images as people do: accuracy, margins, ties, human rows, calibration.

Each image is scored once. Knows groups and scores; knows nothing of how a scorer works or was trained.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sp_rerank.errors import NothingUsableError, UsageError
from sp_rerank.report.tables import new_figure, percent, table, to_svg
from sp_rerank.stats import agreement
from sp_rerank.stats.agreement import Estimate
from sp_rerank.stats.calibration import Calibration, calibrate
from sp_rerank.train.preferences import ImageReader, Pair, PreferenceGroup, split_groups

if TYPE_CHECKING:
    from PIL import Image

    from sp_rerank.types import Scorer

CLEAR = 3
"""Ranks apart from which on two images differ clearly; 1 apart they are of similar quality."""

VALIDATION = 0.2
"""Share of the prompts on which the threshold of predicted ties is chosen."""

View = Callable[["Image.Image"], "Image.Image"]
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """A group without its images, with their scores.

    Attributes:
        prompt: of the group.
        pairs: of images that could be read, by their numbers among these.
        ranks: of the images that could be read, or None.
        annotations: likewise, an annotator each.
        scores: (views, images) float64.
    """

    prompt: str
    pairs: tuple[Pair, ...]
    ranks: tuple[float, ...] | None
    annotations: tuple[tuple[float, ...], ...]
    scores: Array


@dataclass(frozen=True, slots=True)
class Margin:
    """Accuracy on the strict pairs whose ranks are so far apart."""

    ranks_apart: int
    accuracy: float
    pairs: int


@dataclass(frozen=True, slots=True)
class Margins:
    """Micro accuracy by how much better people found the better image.

    Attributes:
        table: by the difference of the ranks.
        similar: of pairs at most 1 rank apart.
        clear: of pairs at least CLEAR ranks apart.
    """

    table: tuple[Margin, ...]
    similar: Estimate
    clear: Estimate


@dataclass(frozen=True, slots=True)
class TieRule:
    """Accuracy by Pick-a-Pic's rule: images within a threshold are predicted to tie.

    Attributes:
        threshold: of |S_first - S_second|, chosen on the validation prompts. Pick-a-Pic's is one of |p0 - p1|, which
            rises with the gap and so predicts the same ties.
        accuracy: on the other prompts.
        validation_pairs: on which the threshold was chosen.
    """

    threshold: float
    accuracy: Estimate
    validation_pairs: int


@dataclass(frozen=True, slots=True)
class Human:
    """How often people agree: of two annotators, and of one with the mean of all ranks of the group."""

    single_single: Estimate
    single_averaged: Estimate


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a scorer is worth on a data set.

    Attributes:
        data: name of the data set.
        scorer: name of the scorer.
        groups: with at least one pair.
        images: scored.
        skipped: why each of the others could not be read, by its name.
        nonfinite: scores that were not finite; a pair with one counts as wrong.
        ties: pairs that people found equally good.
        micro: share of all strict pairs in the right order; a predicted tie is wrong (ImageReward).
        macro: a prompt's 1 - inversions/pairs, then the mean (HPS v2); label ties are pairs that nothing can invert.
            A predicted tie is half an inversion: HPS v2 leaves it to the order in the file.
        tie_rule: None where no pair is a tie or there is no prompt to choose the threshold on.
        margins: None where images are not ranked.
        human: None where single annotators are not known.
        calibration: of the probability that the score gap gives, for one person where single ones are known.
    """

    data: str
    scorer: str
    groups: int
    images: int
    skipped: dict[str, str]
    nonfinite: int
    ties: int
    micro: Estimate
    macro: Estimate
    tie_rule: TieRule | None
    margins: Margins | None
    human: Human | None
    calibration: Calibration


def evaluate(
    scorer: Scorer,
    groups: Iterable[PreferenceGroup],
    *,
    data: str,
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Compare a scorer with people.

    Args:
        scorer: what is evaluated.
        groups: read as they are used; images that cannot be read are left out, with their pairs.
        data: name of the data set, for the tables.
        batch_size: images scored at once, of whatever prompts.
        seed: of the bootstrap over prompts and of the prompts that choose the threshold of ties.
        progress: told how many images are done, scored or skipped.

    Raises:
        NothingUsableError: if no pair of images could be read.
        UsageError: if the scorer does not give a score for each image, and as `read_preferences`.
    """
    reader = ImageReader()
    scored = list(score_groups(scorer, groups, reader=reader, batch_size=batch_size, progress=progress))
    check_usable(scored, data, reader)
    return Evaluation(
        data=data,
        scorer=scorer.name,
        groups=len(scored),
        images=sum(group.scores.shape[1] for group in scored),
        skipped=reader.skipped,
        nonfinite=sum(int((~np.isfinite(group.scores)).sum()) for group in scored),
        ties=sum(pair.label == 0.5 for group in scored for pair in group.pairs),
        micro=micro_accuracy(scored, seed=seed),
        macro=macro_accuracy(scored, seed=seed),
        tie_rule=tie_rule(scored, seed=seed),
        margins=margins(scored, seed=seed),
        human=human_agreement(scored, seed=seed),
        calibration=calibration(scored),
    )


def check_usable(scored: Sequence[ScoredGroup], data: str, reader: ImageReader) -> None:
    """Raise NothingUsableError where there is nothing to compare."""
    if not scored:
        raise NothingUsableError(
            f"{data}: no pair of images could be scored, {len(reader.skipped)} images cannot be read; "
            "expected at least one pair"
        )


# Scores


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
        scorer: what scores.
        groups: read as they are used, one after the other.
        reader: opens the images, each once, and remembers those that cannot be read.
        batch_size: images at once.
        views: what is done to an image before it is scored.
        progress: told how many images are done so far.

    Raises:
        UsageError: if the scorer does not give a score for each image.
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
    scores = ask(scorer, [prompt for _, prompt, _ in batch], [image for _, _, image in batch])
    for (place, _, _), score in zip(batch, scores, strict=True):
        place.append(score)


def ask(scorer: Scorer, prompts: Sequence[str], images: Sequence[Image.Image]) -> list[float]:
    """The score of each image for its prompt; NaN where it is not finite.

    Raises:
        UsageError: if the scorer does not give a score for each image.
    """
    scores = [float(score) for score in scorer.score(prompts, images)]
    if len(scores) != len(images):
        raise UsageError(f"scorer {scorer.name}: expected a score for each of {len(images)} images, got {len(scores)}")
    return [score if math.isfinite(score) else math.nan for score in scores]


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
                annotations=tuple(tuple(one[i] for i in kept) for one in group.annotations),
                scores=np.array(scores).reshape(len(kept), views).T,
            )


# Figures


def micro_accuracy(scored: Sequence[ScoredGroup], *, view: int = 0, seed: int = 0) -> Estimate:
    """The share of all strictly ordered pairs, of all prompts together, whose better image scores strictly higher.

    As `acc` of THUDM/ImageReward (test.py): tied labels are skipped, equal scores are wrong.
    """
    compared = [compare_pairs(group, view) for group in scored]
    return agreement.ratio([c.right.sum() for c in compared], [c.strict.sum() for c in compared], seed=seed)


def macro_accuracy(scored: Sequence[ScoredGroup], *, seed: int = 0) -> Estimate:
    """The mean over prompts of 1 - inversions/pairs, as `inversion_score` of tgxs002/HPSv2 (training/train.py)."""
    compared = [compare_pairs(group) for group in scored]
    inverted = [(c.strict & ~c.right & ~c.equal).sum() + 0.5 * (c.strict & c.equal).sum() for c in compared]
    pairs = np.array([len(c.label) for c in compared])
    return agreement.ratio(1 - np.array(inverted) / pairs, np.ones(len(pairs)), seed=seed)


def margins(scored: Sequence[ScoredGroup], *, seed: int = 0) -> Margins | None:
    """Micro accuracy by the difference of the ranks, rounded; None where no images are ranked."""
    ranked = [compare_pairs(group) for group in scored if group.ranks is not None]
    if not ranked:
        return None

    def within(low: float, high: float) -> Estimate:
        inside = [c.strict & (c.apart >= low) & (c.apart <= high) for c in ranked]
        right = [(c.right & chosen).sum() for c, chosen in zip(ranked, inside, strict=True)]
        return agreement.ratio(right, [chosen.sum() for chosen in inside], seed=seed)

    apart, strict, right = (np.concatenate([getattr(c, name) for c in ranked]) for name in ("apart", "strict", "right"))
    table = tuple(
        Margin(int(value), float(right[chosen].mean()), int(chosen.sum()))
        for value in np.unique(apart[strict])
        for chosen in [strict & (apart == value)]
    )
    return Margins(table, similar=within(0, 1), clear=within(CLEAR, math.inf))


def tie_rule(scored: Sequence[ScoredGroup], *, seed: int = 0) -> TieRule | None:
    """Accuracy where a tie can be predicted: half a point if exactly one of label and prediction is a tie.

    Kirstain et al. 2023 (arXiv 2305.01569): the threshold is the best one on a validation part, here the prompts that
    a hash puts there.
    """
    compared = {id(group): compare_pairs(group) for group in scored}
    if not any((c.label == 0.5).any() for c in compared.values()):
        return None
    chosen_on, measured_on = split_groups(scored, (VALIDATION, 1 - VALIDATION), seed)
    if not chosen_on or not measured_on:
        return None
    gap, label = (
        np.concatenate([getattr(compared[id(group)], name) for group in chosen_on]) for name in ("gap", "label")
    )
    threshold = best_threshold(gap, label)
    points = [_points(compared[id(g)].gap, compared[id(g)].label, threshold).sum() for g in measured_on]
    return TieRule(threshold, agreement.ratio(points, [len(g.pairs) for g in measured_on], seed=seed), len(gap))


def best_threshold(gap: Array, label: Array) -> float:
    """The smallest of the thresholds that give the most points, out of 0 and the gaps themselves.

    Args:
        gap: score of the first image minus that of the second; pairs with NaN never get a point.
        label: 1, 0 or .5.
    """
    size = np.abs(gap[~np.isnan(gap)])
    gain = _points(gap, label, math.inf)[~np.isnan(gap)] - _points(gap, label, -1)[~np.isnan(gap)]
    candidates = np.unique([0, *size])
    order = np.argsort(size)
    total = np.concatenate([[0], np.cumsum(gain[order])])
    return float(candidates[np.argmax(total[np.searchsorted(size[order], candidates, side="right")])])


def _points(gap: Array, label: Array, threshold: float) -> Array:
    tied, predicted = label == 0.5, np.abs(gap) <= threshold
    agreed = np.where(label == 1, gap > 0, gap < 0) | (tied & predicted)
    return np.where(np.isnan(gap), 0, np.where(tied != predicted, 0.5, agreed))


def human_agreement(scored: Sequence[ScoredGroup], *, seed: int = 0) -> Human | None:
    """How often people agree with people; None where single annotators are not known.

    Pairs that either side finds equal are left out between two annotators; against the mean rank of all annotators of
    the group, the one included, a pair that only the one finds equal is wrong. How ties were counted in the published
    rows is not stated: our reading.
    """
    groups = [_annotators(group) for group in scored if len(group.annotations) > 1]
    if not groups:
        return None
    return Human(*(agreement.ratio(*zip(*(counts[i] for counts in groups), strict=True), seed=seed) for i in (0, 1)))


def _annotators(group: ScoredGroup) -> tuple[tuple[int, int], tuple[int, int]]:
    """Agreements and comparisons: of two annotators, of one with the mean."""
    first, second, _ = _columns(group)
    ranks = np.array(group.annotations)
    signs = np.sign(ranks[:, second] - ranks[:, first])
    ahead, behind = (signs > 0).sum(0), (signs < 0).sum(0)
    agreed = (ahead * (ahead - 1) + behind * (behind - 1)) // 2
    compared = (ahead + behind) * (ahead + behind - 1) // 2
    total = ranks.sum(0)
    mean = np.sign(total[second] - total[first])
    with_mean = (signs == mean)[:, mean != 0]
    return (int(agreed.sum()), int(compared.sum())), (int(with_mean.sum()), with_mean.size)


def calibration(scored: Sequence[ScoredGroup]) -> Calibration:
    """Of all pairs, ties as half a preference for each side; see `sp_rerank.stats.calibration.calibrate`.

    Where single annotators are known, each of their choices counts, not the order that was made of them: the question
    is how likely one person is to agree.
    """
    gaps, labels = zip(*(_choices(group) for group in scored), strict=True)
    return calibrate(np.concatenate(gaps), np.concatenate(labels))


def _choices(group: ScoredGroup) -> tuple[Array, Array]:
    """Score gap and label of each choice: of the group's pairs, or of every annotator's."""
    gap, label = compare_pairs(group).gap, compare_pairs(group).label
    if not group.annotations:
        return gap, label
    first, second, _ = _columns(group)
    ranks = np.array(group.annotations)
    chosen = (np.sign(ranks[:, second] - ranks[:, first]) + 1) / 2  # a lower rank is better
    return np.tile(gap, len(ranks)), chosen.ravel()


@dataclass(frozen=True, slots=True)
class ComparedPairs:
    """What a scorer makes of a group's pairs, (pairs,) each.

    Attributes:
        gap: score of the first less that of the second.
        label: as in `Pair`.
        apart: difference of the ranks, NaN where there are none.
        strict: whether people preferred one.
        right: whether that one scores strictly higher.
        equal: whether the scores are equal.
    """

    gap: Array
    label: Array
    apart: Array
    strict: NDArray[np.bool_]
    right: NDArray[np.bool_]
    equal: NDArray[np.bool_]


def compare_pairs(group: ScoredGroup, view: int = 0) -> ComparedPairs:
    """Compare the scores of one view with people."""
    first, second, label = _columns(group)
    gap = group.scores[view][first] - group.scores[view][second]
    ranks = np.array(group.ranks or [math.nan] * group.scores.shape[1])
    right = np.where(label == 1, gap > 0, gap < 0) & (label != 0.5)
    return ComparedPairs(gap, label, np.abs(ranks[first] - ranks[second]).round(), label != 0.5, right, gap == 0)


def _columns(group: ScoredGroup) -> tuple[NDArray[np.int_], NDArray[np.int_], Array]:
    first, second, label = zip(*((pair.first, pair.second, pair.label) for pair in group.pairs), strict=True)
    return np.array(first), np.array(second), np.array(label, float)


# What is written


def markdown(evaluations: Sequence[Evaluation]) -> str:
    """Tables for people: a row a scorer and data sets side by side, then margins, ties and calibration."""
    names = list(dict.fromkeys(one.data for one in evaluations))
    cells = {(one.scorer, one.data): one for one in evaluations}
    scorers = list(dict.fromkeys(one.scorer for one in evaluations))
    head = ["scorer", *(f"{name} {kind}" for name in names for kind in ("micro", "macro"))]
    rows = [
        [scorer, *(percent(getattr(cells[scorer, name], kind)) for name in names for kind in ("micro", "macro"))]
        for scorer in scorers
    ]
    for kind in ("single_single", "single_averaged"):
        human = [one.human for one in (cells[scorers[0], name] for name in names)]
        if any(human):
            row = [cell for one in human for cell in ([percent(getattr(one, kind)), ""] if one else ["", ""])]
            rows.append([f"human: {kind.replace('_', ' against ')}", *row])
    text = "Accuracy, % [95 % interval over prompts]\n\n" + table(head, rows)
    ranked = [one for one in evaluations if one.margins]
    if ranked:
        head = ["scorer", "data", "at most 1 rank apart", f"at least {CLEAR}", "by ranks apart: accuracy (pairs)"]
        text += "\nMicro accuracy by how much better the better image is, %\n\n" + table(
            head,
            [
                [
                    one.scorer,
                    one.data,
                    percent(one.margins.similar),
                    percent(one.margins.clear),
                    ", ".join(f"{m.ranks_apart}: {100 * m.accuracy:.1f} ({m.pairs})" for m in one.margins.table),
                ]
                for one in ranked
                if one.margins
            ],
        )
    head = ["scorer", "data", "prompts", "images", "unreadable", "not finite", "strict pairs", "ties"]
    head += ["with predicted ties", "threshold", "temperature", "calibration error"]
    return text + "\nCounts, ties and calibration\n\n" + table(head, [_counts(one) for one in evaluations])


def _counts(one: Evaluation) -> list[str]:
    counts = [one.groups, one.images, len(one.skipped), one.nonfinite, one.micro.n, one.ties]
    ties = [percent(one.tie_rule.accuracy), f"{one.tie_rule.threshold:.4g}"] if one.tie_rule else ["", ""]
    last = [f"{one.calibration.temperature:.4g}", f"{one.calibration.error:.3f}"]
    return [one.scorer, one.data, *map(str, counts), *ties, *last]


def reliability_plot(evaluations: Sequence[Evaluation]) -> bytes:
    """What share came out as predicted, by predicted probability, as SVG; a dot's area is its share of the pairs."""
    figure = new_figure()
    axes = figure.add_subplot(xlabel="predicted: P(higher score is preferred)", ylabel="observed")
    axes.plot([0.5, 1], [0.5, 1], color="0.7", linestyle="--")
    for one in evaluations:
        x, y, n = ([getattr(b, name) for b in one.calibration.bins] for name in ("predicted", "observed", "n"))
        line = axes.plot(x, y, label=f"{one.scorer.split('@')[0]}, {one.data}: {one.calibration.error:.3f}")[0]
        axes.scatter(x, y, [300 * count / sum(n) for count in n], color=line.get_color())
    axes.legend(title="calibration error")
    return to_svg(figure)
