"""The figures of the experiment on the method: what the scores of its runs say, pooled over seeds. Knows no files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sp_rerank.report.tables import percent, table
from sp_rerank.stats import agreement
from sp_rerank.stats.agreement import Array, Estimate


@dataclass(frozen=True, slots=True)
class Scores:
    """What one scorer gives.

    Attributes:
        test: (views, prompts, images) of the first domain's test prompts; the images as they are, then HP&CC.
        other: The same of the second domain.
        picks: (prompts, candidates) of the best-of-a-hundred prompts.
    """

    test: Array
    other: Array
    picks: Array


@dataclass(frozen=True, slots=True)
class Truths:
    """The truth of the same images, (prompts, images) each; `held_out` is the half that was not learned from."""

    test: Array
    other: Array
    picks: Array
    held_out: Array


@dataclass(frozen=True, slots=True)
class Figures:
    """What a method is worth, its seeds pooled; intervals are over prompts.

    Attributes:
        test: accuracy against the order of the truth on the first domain's test prompts.
        other: The same on the second domain.
        ahead: accuracy on the first domain, less that of the baseline, prompt by prompt.
        ahead_other: The same on the second domain.
        changes: accuracy at each ratio of HP&CC less that on the images as they are, first domain.
        flips: share of pairs whose order HP&CC turns, mean over ratios, first domain.
        shift: mean |S - S'| over the mean deviation of S within a prompt, first domain.
        correlation: Spearman's, with the truth, among a hundred candidates.
        gain: of the held-out truth's best of a hundred over their mean, what the pick has.
        gain_whole: The same of the truth that was learned from.
        picked: the held-out truth of the pick less that of the start's pick, prompt by prompt, over the mean way from
            the mean to the best.
    """

    test: Estimate
    other: Estimate
    ahead: Estimate
    ahead_other: Estimate
    changes: tuple[float, ...]
    flips: float
    shift: float
    correlation: Estimate
    gain: Estimate
    gain_whole: Estimate
    picked: Estimate


def right_by_prompt(scores: Array, truth: Array) -> Array:
    """(prompts,) the share of a prompt's pairs that the scores order as the truth; (prompts, images) each."""
    first, second = np.triu_indices(truth.shape[1], 1)
    return (_signs(scores, first, second) == _signs(truth, first, second)).mean(axis=1)


def order_flips(scores: Array) -> float:
    """The share of pairs that a view orders otherwise than the first view; (views, prompts, images)."""
    first, second = np.triu_indices(scores.shape[2], 1)
    plain = _signs(scores[0], first, second)
    return float(np.mean([_signs(view, first, second) != plain for view in scores[1:]]))


def mean_shift(scores: Array) -> float:
    """Mean |S - S'| of the views over the mean deviation of S within a prompt; (views, prompts, images)."""
    return float(np.abs(scores[1:] - scores[0]).mean() / scores[0].std(axis=1).mean())


def correlations(scores: Array, truth: Array) -> Array:
    """(prompts,) Spearman's rank correlation; (prompts, candidates) each."""
    ranks = [values.argsort(axis=1).argsort(axis=1) for values in (scores, truth)]
    centered = [rank - rank.mean(axis=1, keepdims=True) for rank in ranks]
    return (centered[0] * centered[1]).mean(axis=1) / (ranks[0].std(axis=1) * ranks[1].std(axis=1))


def picked_truth(scores: Array, truth: Array) -> Array:
    """(prompts,) the truth of the candidate that is scored highest."""
    return truth[np.arange(len(truth)), scores.argmax(axis=1)]


def _signs(values: Array, first: NDArray[np.intp], second: NDArray[np.intp]) -> Array:
    return np.sign(values[:, first] - values[:, second])


def figures(runs: Sequence[Scores], start: Scores, baseline: Sequence[Scores], truths: Truths) -> Figures:
    """The figures of a method.

    Args:
        runs: Scores of each seed.
        start: Scores of the scorer that all began with.
        baseline: Scores of each seed of the baseline.
        truths: of the same images.
    """
    right, other = _mean_right(runs, truths)
    base, base_other = _mean_right(baseline, truths)
    views = np.mean([[right_by_prompt(view, truths.test).mean() for view in run.test] for run in runs], axis=0)
    way = truths.held_out.max(axis=1) - truths.held_out.mean(axis=1)
    whole_way = truths.picks.max(axis=1) - truths.picks.mean(axis=1)
    picked = np.mean([picked_truth(run.picks, truths.held_out) for run in runs], axis=0)
    picked_whole = np.mean([picked_truth(run.picks, truths.picks) for run in runs], axis=0)
    return Figures(
        test=_mean(right),
        other=_mean(other),
        ahead=_mean(right - base),
        ahead_other=_mean(other - base_other),
        changes=tuple(float(view - views[0]) for view in views[1:]),
        flips=float(np.mean([order_flips(run.test) for run in runs])),
        shift=float(np.mean([mean_shift(run.test) for run in runs])),
        correlation=_mean(np.mean([correlations(run.picks, truths.picks) for run in runs], axis=0)),
        gain=agreement.ratio(picked - truths.held_out.mean(axis=1), way),
        gain_whole=agreement.ratio(picked_whole - truths.picks.mean(axis=1), whole_way),
        picked=agreement.ratio(picked - picked_truth(start.picks, truths.held_out), way),
    )


def _mean(values: Array) -> Estimate:
    return agreement.ratio(values, np.ones(len(values)))


def _mean_right(runs: Sequence[Scores], truths: Truths) -> tuple[Array, Array]:
    test = np.mean([right_by_prompt(run.test[0], truths.test) for run in runs], axis=0)
    return test, np.mean([right_by_prompt(run.other[0], truths.other) for run in runs], axis=0)


def markdown(results: dict[str, Figures]) -> str:
    """The figures as a table, a row a method."""
    head = ["method", "accuracy", "ahead of cross-entropy", "second domain", "ahead there", "order flips, HP&CC",
            "shift / deviation", "largest change under HP&CC", "correlation of 100", "gain of the pick, held-out half",
            "the half learned from", "ahead of the start's pick"]  # fmt: skip
    rows = []
    for name, method in results.items():
        largest = max(method.changes, key=abs)
        rows.append([
            name, percent(method.test), percent(method.ahead), percent(method.other), percent(method.ahead_other),
            f"{100 * method.flips:.1f}", f"{method.shift:.3f}", f"{100 * largest:+.2f}", _plain(method.correlation),
            percent(method.gain), percent(method.gain_whole), percent(method.picked),
        ])  # fmt: skip
    return table(head, rows)


def _plain(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
